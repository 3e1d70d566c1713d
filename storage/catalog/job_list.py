"""The list of jobs, in plain SQL through the database's own driver.

What people ask for most often must answer at once, and importing SQLAlchemy takes longer than any
of its queries; so this module knows only the drivers. ``Queue`` reads jobs with
the same statements.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tintray.storage.catalog.migrations import REVISIONS
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.values import fits, no_value

_STATES = {str(state) for state in JobState}
_MOMENTS = ("created_at", "updated_at", "handed_at", "stop_at")
_NUMBERS = ("priority", "attempt")
_RESUMABLE = {JobState.FITTING, JobState.FAILED, JobState.CANCELLED}
_MOST = 2**31 - 1  # what databases count jobs with
_WITH_ROUNDS = 500  # jobs of a list whose rounds are looked up
_CONNECT_SECONDS = 3
_VERSION = "SELECT version_num FROM tintray_schema"
_COLUMNS = (
    *("id", "name", "state", "reason", "created_at", "updated_at", "priority", "key"),
    *("cluster", "attempt", "handed_at", "stop_at", "stop_reason"),
)


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
"""Runs a statement with its parameters in the driver's own style; gives back rows."""


@dataclass(frozen=True)
class Dialect:
    """How the statements of this module differ between databases."""

    mark: str  # where a parameter goes
    now: str  # the clock that leases are judged by: the server's, since hosts disagree
    rounds: str  # of a job file
    moment: Callable[[Any], datetime]  # a time, as the driver gives it


SQLITE = Dialect(
    "?",
    "strftime('%Y-%m-%d %H:%M:%f', 'now')",
    "json_extract(spec, '$.fit.rounds')",
    lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC),
)
POSTGRESQL = Dialect(
    "%s",
    "clock_timestamp()",
    "CAST(spec #>> '{fit,rounds}' AS INTEGER)",
    lambda moment: moment.astimezone(UTC),
)


def select_jobs(
    execute: Execute,
    dialect: Dialect,
    *,
    limit: int | None = None,
    states: Iterable[JobState] | None = None,
    name: str | None = None,
    job_id: str | None = None,
) -> list[JobRow]:
    """The ``limit`` newest jobs and all that are not over, newest first; or one by its id."""
    conditions, values = ["1 = 1"], list[object]()
    if states is not None:
        wanted = [str(state) for state in states]
        conditions.append(f"j.state IN ({_marks(dialect, wanted) or 'NULL'})")
        values += wanted
    for column, value in (("name", name), ("id", job_id)):
        if value is not None:
            conditions.append(f"j.{column} = {dialect.mark}")
            values.append(value)
    if limit is not None:
        alive = [str(state) for state in JobState if not state.terminal]
        newest = f"SELECT id FROM jobs ORDER BY created_at DESC, id LIMIT {min(int(limit), _MOST)}"
        # Both are found by index, unlike what is "not over".
        conditions.append(
            f"(j.id IN (SELECT id FROM ({newest}) AS newest) "
            f"OR j.state IN ({_marks(dialect, alive)}))"
        )
        values += alive
    columns = ", ".join(f"j.{column}" for column in _COLUMNS)
    rows = execute(
        f"SELECT {columns}, CASE WHEN l.expires_at > {dialect.now} THEN l.owner END "
        "FROM jobs AS j LEFT JOIN leases AS l ON l.job_id = j.id "
        f"WHERE {' AND '.join(conditions)} ORDER BY j.created_at DESC, j.id",
        values,
    )
    return _with_rounds(execute, dialect, [_row(row, dialect) for row in rows])


def glance(
    url: str,
    *,
    limit: int | None = None,
    states: Iterable[JobState] | None = None,
    name: str | None = None,
) -> list[JobRow] | None:
    """As :func:`select_jobs`, from the catalog at ``url``.

    None where there is none of this code's version, or it does not answer: opening it with
    ``Catalog`` waits, or says what is wrong.
    """
    if "?" in url:
        return None
    if url.startswith("sqlite:///"):
        return _glance_sqlite(Path(url.removeprefix("sqlite:///")), limit, states, name)
    scheme, _, rest = url.partition("://")
    if scheme in ("postgresql", "postgresql+psycopg"):
        return _glance_postgresql(f"postgresql://{rest}", limit, states, name)
    return None


def _glance_sqlite(file: Path, *query: Any) -> list[JobRow] | None:
    try:
        connection = sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=30)
    except sqlite3.Error:
        return None
    try:
        return _current(connection.execute, SQLITE, *query)
    except sqlite3.Error:
        return None
    finally:
        connection.close()


def _glance_postgresql(url: str, *query: Any) -> list[JobRow] | None:
    try:
        import psycopg
    except ModuleNotFoundError:
        return None
    try:
        with psycopg.connect(
            url, connect_timeout=_CONNECT_SECONDS, application_name="tintray"
        ) as connection:
            return _current(connection.execute, POSTGRESQL, *query)
    except psycopg.Error:
        return None


def _current(
    execute: Any,
    dialect: Dialect,
    limit: int | None,
    states: Iterable[JobState] | None,
    name: str | None,
) -> list[JobRow] | None:
    """The list, if the tables are those of this code."""
    if [row[0] for row in execute(_VERSION, ())] != [REVISIONS[-1]]:
        return None
    return select_jobs(execute, dialect, limit=limit, states=states, name=name)


def _row(row: Sequence[Any], dialect: Dialect) -> JobRow:
    fields = dict(zip((*_COLUMNS, "owner"), row, strict=True))
    for name, value in fields.items():
        if name in _MOMENTS and value is not None:
            fields[name] = _moment(value, dialect)
        elif not fits(value, int if name in _NUMBERS else str):
            raise no_value(value)
    if fields["state"] not in _STATES:
        raise no_value(fields["state"])
    return JobRow(**{**fields, "state": JobState(fields["state"])})


def _moment(value: Any, dialect: Dialect) -> datetime:
    try:
        return dialect.moment(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise no_value(value) from error


def _with_rounds(execute: Execute, dialect: Dialect, rows: list[JobRow]) -> list[JobRow]:
    """With the rounds of those that are being fitted, or could be resumed."""
    ids = [row.id for row in rows if row.state in _RESUMABLE][:_WITH_ROUNDS]
    if not ids:
        return rows
    last = execute(
        f"SELECT id, {dialect.rounds}, "
        "(SELECT MAX(round) FROM rounds WHERE rounds.job_id = jobs.id) "
        f"FROM jobs WHERE id IN ({_marks(dialect, ids)})",
        ids,
    )
    known = {
        job_id: (done, wanted if isinstance(wanted, int) else None)
        for job_id, wanted, done in last
        if isinstance(done, int)
    }
    return [
        replace(row, round=known[row.id][0], rounds=known[row.id][1]) if row.id in known else row
        for row in rows
    ]


def _marks(dialect: Dialect, values: Sequence[object]) -> str:
    return ", ".join([dialect.mark] * len(values))
