"""The list of jobs, in one plain statement through the database's own driver.

What people ask for most often must answer at once, and importing SQLAlchemy's Core alone doubles
the time of ``tintray ps``; so this module knows only the drivers. ``Queue`` reads jobs with the
same statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tintray.storage.catalog.migrations import REVISIONS
from tintray.storage.catalog.states import ALIVE, JobState
from tintray.storage.catalog.values import fits, no_value

if TYPE_CHECKING:
    import sqlalchemy as sa

_MOMENTS = ("created_at", "updated_at", "handed_at", "stop_at")
_NUMBERS = ("priority", "attempt", "round")
_MOST = 2**31 - 1  # what databases count jobs with
_CONNECT_SECONDS = 3


def _listed(states: Iterable[JobState]) -> str:
    return ", ".join(f"'{state}'" for state in states) or "NULL"


_VERSION = "SELECT version_num FROM tintray_schema"
_COLUMNS = (
    *("id", "name", "state", "reason", "created_at", "updated_at", "priority", "key"),
    *("cluster", "attempt", "handed_at", "stop_at", "stop_reason"),
)
_ROUNDS = "json_extract(j.spec, '$.fit.rounds')"
_ALIVE = _listed(ALIVE)
_RESUMABLE = _listed((JobState.FITTING, JobState.FAILED, JobState.CANCELLED))
_SELECT = f"""
SELECT {", ".join(f"j.{column}" for column in _COLUMNS)},
    CASE WHEN l.expires_at > CURRENT_TIMESTAMP THEN l.owner END,
    CASE WHEN j.state IN ({_RESUMABLE})
        THEN (SELECT MAX(round) FROM rounds WHERE rounds.job_id = j.id) END,
    CASE WHEN j.state IN ({_RESUMABLE}) THEN {_ROUNDS} END
FROM jobs AS j LEFT JOIN leases AS l ON l.job_id = j.id
"""
# The newest, and what is not over, are found by index, unlike what is over.
_NEWEST = f"""(
    j.id IN (SELECT id FROM (
        SELECT id FROM jobs ORDER BY created_at DESC, id LIMIT {{}}) AS newest)
    OR j.state IN ({_ALIVE}))"""


@dataclass(frozen=True)
class JobRow:
    """A job as lists show it, without its job file."""

    id: str
    name: str
    state: JobState
    reason: str
    created_at: datetime
    updated_at: datetime
    priority: int
    key: str | None
    cluster: str | None
    attempt: int
    handed_at: datetime | None
    stop_at: datetime | None
    stop_reason: str | None
    owner: str | None  # who holds its lease, if that is in force
    round: int | None = None  # the last that is known, of a job that is not over
    rounds: int | None = None

    @property
    def lost(self) -> bool:
        """Whether somebody had begun to work on it, and nobody does any more."""
        if self.state.terminal or self.owner is not None:
            return False
        return self.state is not JobState.QUEUED or self.cluster is None


Execute = Callable[[str, Sequence[object]], Iterable[Sequence[Any]]]
"""Runs a statement with its parameters; gives back rows."""


def in_postgresql(statement: str) -> str:
    """A statement of this module, which are in SQLite's words, in those of PostgreSQL."""
    return statement.replace("?", "%s").replace(_ROUNDS, "j.spec #>> '{fit,rounds}'")


def select_jobs(
    execute: Execute,
    *,
    limit: int | None = None,
    states: Iterable[JobState] | None = None,
    name: str | None = None,
    job_id: str | None = None,
) -> list[JobRow]:
    """The ``limit`` newest jobs and all that are not over, newest first; or one by its id."""
    given = {"j.name = ?": name, "j.id = ?": job_id}
    conditions = [condition for condition, value in given.items() if value is not None]
    values = [value for value in given.values() if value is not None]
    if states is not None:
        conditions.append(f"j.state IN ({_listed(states)})")
    if limit is not None:
        conditions.append(_NEWEST.format(min(int(limit), _MOST)))
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    statement = f"{_SELECT}{where}ORDER BY j.created_at DESC, j.id"
    return [_row(row) for row in execute(statement, values)]


def jobs_of(connection: sa.Connection, **query: Any) -> list[JobRow]:
    """As :func:`select_jobs`, through a connection of SQLAlchemy's."""
    worded = str if connection.dialect.name == "sqlite" else in_postgresql

    def execute(statement: str, values: Sequence[object]) -> Iterable[Sequence[Any]]:
        return connection.exec_driver_sql(worded(statement), tuple(values)).all()

    return select_jobs(execute, **query)


def read_jobs(url: str, **query: Any) -> list[JobRow] | None:
    """As :func:`select_jobs`, from the catalog at ``url``.

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
    worded = str if scheme == "sqlite" else in_postgresql
    try:
        with closing(connect()) as connection:
            if [row[0] for row in connection.execute(_VERSION)] != [REVISIONS[-1]]:
                return None
            return select_jobs(
                lambda words, values: connection.execute(worded(words), values), **query
            )
    except failure:
        return None


def _row(row: Sequence[Any]) -> JobRow:
    fields = dict(zip((*_COLUMNS, "owner", "round"), row[:-1], strict=True))
    for name, value in fields.items():
        if name in _MOMENTS and value is not None:
            fields[name] = _moment(value)
        elif not fits(value, int if name in _NUMBERS else str):
            raise no_value(value)
    if fields["state"] not in set(JobState):
        raise no_value(fields["state"])
    rounds = int(row[-1]) if fields["round"] is not None and str(row[-1]).isdigit() else None
    return JobRow(**{**fields, "state": JobState(fields["state"])}, rounds=rounds)


def _moment(value: Any) -> datetime:
    """A time in UTC: SQLite gives a text without a zone, PostgreSQL a time with one."""
    try:
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    except (ValueError, TypeError) as error:
        raise no_value(value) from error
