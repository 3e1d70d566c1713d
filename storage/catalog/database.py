"""Transactions with the catalog's database: short, patient with a server that is away."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from tintray.errors import NotFoundError, StorageError
from tintray.storage.catalog.engine import failures, make_engine, parse_catalog_url, writing
from tintray.storage.catalog.schema import ensure_schema
from tintray.storage.catalog.tables import Base
from tintray.storage.secrets import shown_catalog

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

Found = TypeVar("Found")


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
        with failures(self.url), self._connect() as conn, _session(conn) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed when the block ends well."""
        with failures(self.url), self._connect() as conn, _session(writing(conn)) as session:
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


class Repository:
    """A part of the catalog: some tables, and all that is asked of them."""

    def __init__(self, database: Database) -> None:
        self.url = database.url
        self._read = database.read
        self._write = database.write

    def _list(self, query: sa.Select[Found]) -> list[Found]:
        with self._read() as session:
            return list(session.scalars(query))


def insert_missing(session: Session, table: type[Base], rows: list[dict[str, Any]]) -> None:
    """Insert rows, leaving those alone whose primary key is there already."""
    if rows:
        session.execute(_insert(session, table).on_conflict_do_nothing(), rows)


def insert_or_replace(
    session: Session, table: type[Base], rows: list[dict[str, Any]], key: list[str]
) -> None:
    """Insert rows; a row whose ``key`` is there already takes the new values."""
    if rows:
        statement = _insert(session, table)
        changed = {name: statement.excluded[name] for name in rows[0] if name not in key}
        session.execute(statement.on_conflict_do_update(index_elements=key, set_=changed), rows)


def _insert(session: Session, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    # Imported for the database at hand: each costs as much as a query, and a list needs neither.
    if session.get_bind().dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


@contextmanager
def _session(connection: sa.Connection) -> Iterator[Session]:
    with Session(connection, expire_on_commit=False) as session, session.begin():
        yield session


def prepare_folder(catalog: sa.URL, create: bool) -> None:
    """Make the folder of a SQLite catalog whose file is not there yet, if it may be created."""
    url, file = shown_catalog(catalog), Path(catalog.database or "")
    if catalog.drivername != "sqlite" or os.path.exists(file):  # noqa: PTH110 - raises for no name
        return
    if not create:
        raise NotFoundError(f"there is no catalog {url} yet; run a job with it first")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the catalog {url} cannot be created: {error.strerror} ({file.parent}); name a file "
            "in a folder that this user may write"
        ) from error
