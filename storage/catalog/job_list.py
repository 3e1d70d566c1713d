"""The list of jobs, in one plain statement; see ``drivers``. ``Queue`` reads jobs with the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tintray.storage.catalog.drivers import ROUNDS, Execute, moment
from tintray.storage.catalog.states import ALIVE, JobState
from tintray.storage.catalog.values import fits, no_value

_MOMENTS = ("created_at", "updated_at", "handed_at", "stop_at")
_NUMBERS = ("priority", "attempt", "round")
_MOST = 2**31 - 1  # what databases count jobs with


def _listed(states: Iterable[JobState]) -> str:
    return ", ".join(f"'{state}'" for state in states) or "NULL"


_COLUMNS = (
    *("id", "name", "state", "reason", "created_at", "updated_at", "priority", "key"),
    *("cluster", "attempt", "handed_at", "stop_at", "stop_reason"),
)
_ALIVE = _listed(ALIVE)
_RESUMABLE = _listed((JobState.FITTING, JobState.FAILED, JobState.CANCELLED))
_SELECT = f"""
SELECT {", ".join(f"j.{column}" for column in _COLUMNS)},
    CASE WHEN l.expires_at > CURRENT_TIMESTAMP THEN l.owner END,
    CASE WHEN j.state IN ({_RESUMABLE})
        THEN (SELECT MAX(round) FROM rounds WHERE rounds.job_id = j.id) END,
    CASE WHEN j.state IN ({_RESUMABLE}) THEN {ROUNDS} END
FROM jobs AS j LEFT JOIN leases AS l ON l.job_id = j.id
"""
# The newest, and what is not over, are found by index, unlike what is over. In one list: of two
# conditions either of which may hold, PostgreSQL would read every row.
_NEWEST = f"""j.id IN (
    SELECT id FROM (SELECT id FROM jobs ORDER BY created_at DESC, id LIMIT {{}}) AS newest
    UNION ALL SELECT id FROM jobs WHERE state IN ({_ALIVE}))"""

CLUSTERS = "SELECT address, max_jobs FROM clusters"
"""Clusters, and how many jobs each runs at once."""


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


def _row(row: Sequence[Any]) -> JobRow:
    fields = dict(zip((*_COLUMNS, "owner", "round"), row[:-1], strict=True))
    for name, value in fields.items():
        if name in _MOMENTS and value is not None:
            fields[name] = moment(value)
        elif not fits(value, int if name in _NUMBERS else str):
            raise no_value(value)
    if fields["state"] not in set(JobState):
        raise no_value(fields["state"])
    rounds = int(row[-1]) if fields["round"] is not None and str(row[-1]).isdigit() else None
    return JobRow(**{**fields, "state": JobState(fields["state"])}, rounds=rounds)
