"""Transactions with the catalog's database: short, patient with a server that is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from tintray.errors import NotFoundError, StorageError
from tintray.storage.catalog.engine import (
    failures,
    is_absent,
    make_engine,
    parse_catalog_url,
    sqlite_file,
    writing,
)
from tintray.storage.catalog.schema import ensure_schema
from tintray.storage.secrets import shown_catalog


class Database:
    """A pool of connections to a database whose tables are those of this code."""

    def __init__(self, engine: sa.Engine, patience: float):
        self.url = shown_catalog(engine.url)
        self._engine = engine
        self._patience = patience

    @classmethod
    def open(cls, url: str, create: bool, patience: float) -> Self:
        """Connect and check the schema; see ``Catalog.open``."""
        parsed = parse_catalog_url(url)
        if is_absent(parsed):
            prepare_folder(parsed, create)
        engine = make_engine(parsed)
        try:
            ensure_schema(engine, create)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, patience)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state of the database and changes nothing."""
        with failures(self.url), self._connect() as connection, _session(connection) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed when the block ends well."""
        with (
            failures(self.url),
            self._connect() as connection,
            _session(writing(connection)) as session,
        ):
            yield session

    def _connect(self) -> sa.Connection:
        """A live connection; waits for a server that is away, since nothing has been sent yet."""
        give_up = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                return self._engine.connect()
            except OperationalError:
                if time.monotonic() + pause > give_up:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)


@contextmanager
def _session(connection: sa.Connection) -> Iterator[Session]:
    with Session(connection, expire_on_commit=False) as session, session.begin():
        yield session


def prepare_folder(catalog: sa.URL, create: bool) -> None:
    """Make the folder of a SQLite catalog that is not there yet, if it may be created."""
    url, file = shown_catalog(catalog), sqlite_file(catalog)
    if not create:
        raise NotFoundError(f"there is no catalog {url} yet; run a job with it first")
    assert file is not None, "only a file can be absent"
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the catalog {url} cannot be created: {error.strerror} ({folder}); name a file in a "
            "folder that this user may write"
        ) from error
