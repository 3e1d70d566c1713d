"""Connections to the catalog's database: SQLite as a file, PostgreSQL through psycopg 3."""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tintray.errors import AwayError, SpecError, StorageError, nearest
from tintray.storage.secrets import CATALOG_SCHEMES, learn_url, parse_catalog, redact, shown_catalog

BUSY_SECONDS = 30.0  # how long a SQLite writer waits for its turn
_TURN_MILLISECONDS = 100  # of SQLite's own waiting, of a writer that has just come
_CONNECT_SECONDS = 10
_WRITE = "tintray_write"


def parse_catalog_url(url: str) -> sa.URL:
    """Read a catalog URL: ``sqlite:///path`` or ``postgresql+psycopg://user@host/name``.

    ``postgresql://`` means psycopg 3 too. Raises ``SpecError`` without repeating a password.
    """
    try:
        parsed = parse_catalog(url)
    except ValueError as error:
        raise SpecError(
            "catalog: expected sqlite:///path or postgresql+psycopg://user@host/name, found "
            f"{error}"
        ) from None
    learn_url(url, parsed)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in CATALOG_SCHEMES:
        hint = nearest(parsed.drivername, CATALOG_SCHEMES)
        found = f"found '{parsed.drivername}://'{hint}"
        raise SpecError(f"catalog: expected sqlite:// or postgresql+psycopg://, {found}")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise SpecError("catalog: a SQLite catalog needs a file, as in sqlite:///folder/catalog.db")
    return parsed


def make_engine(url: sa.URL) -> sa.Engine:
    """An engine for the catalog; connects nowhere yet."""
    options: dict[str, Any] = {"json_serializer": _json, "hide_parameters": True}
    if url.drivername == "sqlite":
        if may_only_be_read(url):
            # A connection that is kept would not see what others write later.
            options |= {"creator": partial(_connect_to_read, url), "poolclass": sa.NullPool}
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, **options)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    defaults = {"connect_timeout": _CONNECT_SECONDS, "application_name": "tintray"}
    chosen = {key: value for key, value in defaults.items() if key not in url.query}
    try:
        return sa.create_engine(
            url, connect_args=chosen, pool_pre_ping=True, pool_size=4, max_overflow=12, **options
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise StorageError(
            f"catalog {shown_catalog(url)}: PostgreSQL needs the package psycopg, which is not "
            "installed; pip install 'tintray[postgres]'"
        ) from error


def may_only_be_read(url: sa.URL) -> bool:
    """Whether SQLite could write nothing beside the catalog's file, which even a reader needs."""
    file = Path(url.database or "")
    return file.exists() and not os.access(file.absolute().parent, os.W_OK)


def _connect_to_read(url: sa.URL) -> sqlite3.Connection:
    """A connection that needs no file of its own beside the catalog's.

    Where nobody writes there is no log of what was written: the file is all. A log that others
    have is read with theirs.
    """
    file = Path(url.database or "").absolute()
    others_write = file.with_name(f"{file.name}-wal").exists()
    return sqlite3.connect(
        f"{file.as_uri()}?{'mode=ro' if others_write else 'immutable=1'}",
        uri=True,
        timeout=BUSY_SECONDS,
        check_same_thread=False,
    )


def writing(connection: sa.Connection) -> sa.Connection:
    """Mark a connection whose next transaction writes: SQLite then queues for it at the start.

    A SQLite transaction that reads first and writes later cannot wait: it fails as 'locked'.
    """
    return connection.execution_options(**{_WRITE: True})


@contextmanager
def failures(url: str) -> Iterator[None]:
    """Turn what the database raises into one sentence naming the catalog ``url``."""
    try:
        yield
    except DBAPIError as error:
        raise (AwayError if _is_away(error) else StorageError)(_sentence(url, error)) from error
    except PoolTimeout as error:
        raise AwayError(f"the catalog {url} gave no free connection in time: {error}") from error


def _is_away(error: DBAPIError) -> bool:
    """Whether a server cannot be reached, stops or starts, or has a full disk, which may pass.

    By PostgreSQL's codes: 53100 is a full disk.
    """
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    code = getattr(error.orig, "sqlstate", None)
    if code is None:
        return error.connection_invalidated or isinstance(error, OperationalError)
    return str(code).startswith(("08", "57P", "53100"))


def _json(value: object) -> str:
    """JSON that every database takes: a loss that is not finite becomes null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _prepare_sqlite(connection: DBAPIConnection, _: object) -> None:
    # Python's sqlite3 would begin transactions on its own, too late for BEGIN IMMEDIATE.
    connection.isolation_level = None
    with closing(connection.cursor()) as cursor:
        cursor.execute("PRAGMA foreign_keys = ON")
        # A state that was reported must survive a power cut; NORMAL could lose the last ones.
        cursor.execute("PRAGMA synchronous = FULL")
        _turn_to_wal(cursor)


def _turn_to_wal(cursor: Any) -> None:
    """Switch the file to a write-ahead log; SQLite does not wait here, so we do."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode")
            if cursor.fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: sa.Connection) -> None:
    if connection.get_execution_options().get(_WRITE, False):
        _begin_to_write(connection)
    else:
        connection.exec_driver_sql("BEGIN")


def _begin_to_write(connection: sa.Connection) -> None:
    """Begin a transaction once no other one writes.

    SQLite looks ever more rarely the longer it has waited: of many writers those who came last go
    first, and some never. Here who has waited longer looks more often.
    """
    driver, began = connection.connection.driver_connection, time.monotonic()
    assert isinstance(driver, sqlite3.Connection)
    try:
        while (waited := time.monotonic() - began) < BUSY_SECONDS:
            turn = max(1, _TURN_MILLISECONDS // (1 + waited))
            driver.execute(f"PRAGMA busy_timeout = {turn:.0f}")
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # for its error
    finally:
        driver.execute(f"PRAGMA busy_timeout = {1000 * BUSY_SECONDS:.0f}")


_ADVICE = {
    "unable to open database file": "check that its folder exists and may be written",
    "readonly database": "give this user the right to write the file and its folder",
    "disk is full|no space left": "free some space on its disk",
    "disk i/o error": "check its disk, and that its file and folder are there and may be written",
    "not a database": "name another file: this one is something else, or damaged",
    "malformed": "restore it from a copy: the file is damaged",
    "database is locked": f"another process held it for more than {BUSY_SECONDS:.0f} s; end that",
    "password|authentication": "check the user and the password",
    "role": "check the user",
    "does not exist": "create the database, or correct its name",
    "too many": "raise max_connections or run fewer clients",
    "resolve": "check the host name",
    "refused|no such file|timeout": "check host and port, and that the server runs",
}


def _sentence(url: str, error: DBAPIError) -> str:
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    detail = redact(re.sub(r"\s+", " ", lines[0] if lines else type(error.orig).__name__))
    other = "check its file" if isinstance(error.orig, sqlite3.Error) else "see the server's log"
    found = (advice for said, advice in _ADVICE.items() if re.search(said, detail.lower()))
    return f"the catalog {url} cannot be used: {detail.rstrip('.')}; {next(found, other)}"
