"""One plain statement through the database's own driver, for what must answer at once.

Importing SQLAlchemy's Core alone takes longer than what people ask for most often: the lists of
jobs and merges, and the names that a shell completes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from tintray.storage.catalog.migrations import USABLE
from tintray.storage.catalog.values import no_value

if TYPE_CHECKING:
    import sqlalchemy as sa

Answer = TypeVar("Answer")
Execute = Callable[[str, Sequence[object]], Iterable[Sequence[Any]]]
"""Runs a statement, in SQLite's words, with its parameters; gives back rows."""

ROUNDS = "json_extract(j.spec, '$.fit.rounds')"
_VERSION = "SELECT version_num FROM tintray_schema"
_CONNECT_SECONDS = 3


def _in_postgresql(statement: str) -> str:
    """A statement in SQLite's words in those of PostgreSQL."""
    return statement.replace("?", "%s").replace(ROUNDS, "j.spec #>> '{fit,rounds}'")


def ask(url: str, question: Callable[[Execute], Answer]) -> Answer | None:
    """The answer of the catalog at ``url``.

    None where there is none of this code's version, or it does not answer: opening it with
    ``Catalog`` waits, or says what is wrong.
    """
    scheme, _, rest = url.partition("://")
    connect: Callable[[], Any]
    failure: type[Exception]
    if "?" in url:
        return None
    if scheme == "sqlite" and rest.startswith("/"):
        file = f"file:{quote(str(Path(rest[1:])))}?mode=rw"
        connect, failure = partial(sqlite3.connect, file, uri=True, timeout=30), sqlite3.Error
    elif scheme in ("postgresql", "postgresql+psycopg"):
        try:
            import psycopg
        except ModuleNotFoundError:
            return None
        options: Any = {"connect_timeout": _CONNECT_SECONDS, "application_name": "tintray"}
        connect = partial(psycopg.connect, f"postgresql://{rest}", **options)
        failure = psycopg.Error
    else:
        return None
    worded = str if scheme == "sqlite" else _in_postgresql
    try:
        with closing(connect()) as connection:
            if not {row[0] for row in connection.execute(_VERSION)} & {*USABLE}:
                return None
            return question(lambda words, values: connection.execute(worded(words), values))
    except failure:
        return None


def through(connection: sa.Connection) -> Execute:
    """The same statements through a connection of SQLAlchemy's."""
    worded = str if connection.dialect.name == "sqlite" else _in_postgresql

    def execute(statement: str, values: Sequence[object]) -> Iterable[Sequence[Any]]:
        return connection.exec_driver_sql(worded(statement), tuple(values)).all()

    return execute


def moment(value: Any) -> datetime:
    """A time in UTC: SQLite gives a text without a zone, PostgreSQL a time with one."""
    try:
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    except (ValueError, TypeError) as error:
        raise no_value(value) from error
