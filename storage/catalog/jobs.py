"""Jobs, each change of their state, and what is known of their rounds.

Every change of a job's state is a compare-and-set with its reason kept as an event.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, load_only

from tintray.errors import NotFoundError, StateConflictError, nearest
from tintray.storage.artifacts.urls import check_name
from tintray.storage.catalog.database import Repository, insert_or_replace
from tintray.storage.catalog.leases import fence
from tintray.storage.catalog.states import OVER, JobState
from tintray.storage.catalog.tables import Event, Job, Lease, Round
from tintray.storage.secrets import redact, scrub, shown_catalog, shown_url

_AT_ONCE = 50  # jobs whose rounds are forgotten in one transaction
_RESTARTS = 10  # where a job file says nothing (``cluster.restarts``)


class Jobs(Repository):
    """The jobs in a catalog."""

    def create(
        self,
        name: str,
        spec: Mapping[str, Any],
        store_url: str,
        *,
        cluster: str | None = None,
        priority: int = 0,
        key: str | None = None,
        digest: str | None = None,
    ) -> str:
        """Queue a job; returns its id. Passwords in URLs of the spec are not kept.

        With ``cluster`` it waits until it is handed over to that; otherwise whoever made it runs
        it. Raises ``StateConflictError`` if there is a job with this ``key`` already.
        """
        job_id = f"{check_name(name, 'job name')}-{uuid.uuid4().hex[:8]}"
        now = datetime.now(UTC)
        with self._write() as session:
            if key is not None and session.scalar(sa.select(Job.id).where(Job.key == key)):
                raise StateConflictError(f"there is a job with the key {key!r} already")
            session.add(
                Job(
                    id=job_id,
                    name=name,
                    state=JobState.QUEUED,
                    reason="submitted",
                    spec=scrub(dict(spec)),
                    store_url=shown_url(store_url),
                    created_at=now,
                    updated_at=now,
                    cluster=cluster,
                    priority=priority,
                    key=key,
                    digest=digest,
                )
            )
            session.flush()
            session.add(Lease(job_id=job_id, token=0))
            note_event(session, job_id, None, JobState.QUEUED, "submitted", now)
        return job_id

    def transition(
        self,
        job_id: str,
        from_state: JobState,
        to: JobState,
        reason: str,
        *,
        token: int | None = None,
    ) -> None:
        """Change a job's state if it is ``from_state``, with the reason as an event.

        ``token``, if given, must be that of the lease in force. Its owner alone moves a job that is
        not over: if the catalog has another state, it has forgotten some that it confirmed, as a
        standby or a database that does not wait for its disk may, and is told the newest.

        Raises ``StateConflictError`` if the job is in another state by now, and
        ``LeaseLostError`` if another owner works on it.
        """
        with self._write() as session:
            fence(session, job_id, token)
            # Locked, so that the state that the event names is the one that is replaced.
            job = session.get(Job, job_id, options=[load_only(Job.state)], with_for_update=True)
            if job is None:
                raise no_job(session, job_id)
            forgotten = token is not None and not job.state.terminal
            if job.state != from_state and not forgotten:
                raise StateConflictError(
                    f"job {job_id} is {job.state}, not {from_state}: it cannot "
                    f"become {to}; another process changed it first"
                )
            change_state(session, job, to, reason, datetime.now(UTC))

    def get(self, job_id: str) -> Job:
        """One job; ``NotFoundError`` with the nearest id if there is none."""
        with self._read() as session:
            job = session.get(Job, job_id)
            if job is None:
                raise no_job(session, job_id)
            return job

    def all(self) -> list[Job]:
        """All jobs, oldest first."""
        return self._list(sa.select(Job).order_by(Job.created_at, Job.id))

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """The changes of a job's state, oldest first; those with an id above ``after``."""
        mine = sa.and_(Event.job_id == job_id, Event.id > after)
        return self._list(sa.select(Event).where(mine).order_by(Event.id))

    def recoveries(self, job_id: str) -> list[Event]:
        """How a job went on by itself since somebody last asked for it, oldest first."""
        with self._read() as session:
            return recoveries(session, job_id)

    def record_rounds(
        self, job_id: str, batch: Mapping[int, Mapping[str, Any]], *, token: int | None = None
    ) -> None:
        """Keep the metrics of some rounds, in one transaction. A repeated round is replaced."""
        now = datetime.now(UTC)
        rows = [
            {"job_id": job_id, "round": number, "at": now, "metrics": scrub(dict(metrics))}
            for number, metrics in batch.items()
        ]
        with self._write() as session:
            fence(session, job_id, token)
            insert_or_replace(session, Round, rows, ["job_id", "round"])

    def rounds(self, job_id: str, *, after: int = -1) -> list[Round]:
        """The recorded rounds of a job above ``after``, in order."""
        mine = sa.and_(Round.job_id == job_id, Round.round > after)
        return self._list(sa.select(Round).where(mine).order_by(Round.round))

    def forget_rounds(self, before: datetime, *, dry_run: bool = False) -> int:
        """Forget what is known of the rounds, but the last, of jobs that were over by then.

        A few jobs at a time, so that nobody has to wait long. Returns how many rounds these are.
        """
        old = sa.and_(Job.state.in_(OVER), Job.updated_at < before)
        counted = (
            sa.select(Round.job_id, sa.func.max(Round.round), sa.func.count() - 1)
            .join(Job, Job.id == Round.job_id)
            .where(old)
            .group_by(Round.job_id)
            .having(sa.func.count() > 1)
        )
        with self._read() as session:
            found = session.execute(counted).all()
        for start in range(0, 0 if dry_run else len(found), _AT_ONCE):
            with self._write() as session:
                for job_id, last, _ in found[start : start + _AT_ONCE]:
                    gone = sa.and_(Round.job_id == job_id, Round.round < last)
                    session.execute(sa.delete(Round).where(gone))
        return sum(number for _, _, number in found)

    def last_round(self, job_id: str) -> Round | None:
        """The last recorded round of a job, if there is one."""
        query = sa.select(Round).where(Round.job_id == job_id).order_by(Round.round.desc())
        return next(iter(self._list(query.limit(1))), None)


def change_state(session: Session, job: Job, to: JobState, reason: str, now: datetime) -> None:
    """Give a job that is locked another state, with its event."""
    note_event(session, job.id, job.state, to, reason, now)
    job.state, job.reason, job.updated_at = to, redact(reason), now


def recoveries(session: Session, job_id: str) -> list[Event]:
    """The events by which a job went on by itself since somebody last asked for it."""
    found: list[Event] = []
    for event in session.scalars(sa.select(Event).where(Event.job_id == job_id).order_by(Event.id)):
        before = event.from_state
        if before is None or before.terminal:
            found.clear()
        elif before.goes_back_to(event.to_state):
            found.append(event)
    return found


def most_restarts(job: Job) -> int:
    """How often a job may go on by itself."""
    cluster = job.spec.get("cluster")
    found = cluster.get("restarts") if isinstance(cluster, dict) else None
    return found if isinstance(found, int) else _RESTARTS


def note_event(
    session: Session, job_id: str, before: JobState | None, to: JobState, reason: str, at: datetime
) -> None:
    """Keep what happened to a job."""
    reason = redact(reason)
    session.add(Event(job_id=job_id, at=at, from_state=before, to_state=to, reason=reason))


def no_job(session: Session, job_id: str) -> NotFoundError:
    """That there is no such job, with the nearest id that there is."""
    where = shown_catalog(session.connection().engine.url)
    hint = nearest(job_id, session.scalars(sa.select(Job.id))) or "; `tintray ps` lists them"
    return NotFoundError(f"there is no job {job_id} in the catalog {where}{hint}")
