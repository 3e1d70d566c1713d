"""The queue of each cluster: which job goes next, which runs, which was lost, who is to stop.

Nobody runs the queue: whoever submits, watches or ends a job claims what may go next and hands it
over. A claim is one transaction that holds the cluster's row, so that a job is claimed once and the
limit of the cluster is kept, however many claim at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tintray.errors import LeaseHeldError, StateConflictError
from tintray.storage.catalog.database import Repository, insert_missing, insert_or_replace
from tintray.storage.catalog.drivers import Answer, Execute, through
from tintray.storage.catalog.job_list import JobRow, select_jobs
from tintray.storage.catalog.jobs import change_state, most_restarts, no_job, note_event, recoveries
from tintray.storage.catalog.leases import database_time
from tintray.storage.catalog.states import ALIVE, BEGUN, JobState
from tintray.storage.catalog.tables import Cluster, Event, Job, Lease, Round
from tintray.storage.catalog.waiting import HANDOVER, MAX_JOBS, QueuePosition, waits
from tintray.storage.secrets import redact

ATTEMPTS = 3  # how often a job that shows none is handed over before it counts as failed


@dataclass(frozen=True)
class Claim:
    """A job that is ours to hand over, and how often it has been handed over with this time."""

    job_id: str
    attempt: int


class Queue(Repository):
    """The queues of the clusters that a catalog knows."""

    # Reading

    def find(self, job_id: str) -> JobRow:
        """One job; ``NotFoundError`` with the nearest id if there is none."""
        with self._read() as session:
            found = select_jobs(through(session.connection()), job_id=job_id)
            if not found:
                raise no_job(session, job_id)
            return found[0]

    def by_prefix(self, text: str) -> list[str]:
        """Ids of the jobs that begin with ``text``, or whose name it is; newest first."""
        named = sa.or_(Job.id.startswith(text, autoescape=True), Job.name == text)
        query = sa.select(Job.id).where(named).order_by(Job.created_at.desc()).limit(10)
        return self._list(query)

    def listing(
        self, limit: int | None, states: Iterable[JobState] | None = None, name: str | None = None
    ) -> list[JobRow]:
        """The ``limit`` newest jobs and all that are not over, newest first."""
        with self._read() as session:
            return select_jobs(through(session.connection()), limit=limit, states=states, name=name)

    def look(self, question: Callable[[Execute], Answer]) -> Answer:
        """What plain statements answer, as of ``drivers.ask``."""
        with self._read() as session:
            return question(through(session.connection()))

    def position(self, job: JobRow) -> QueuePosition | None:
        """Where a job stands that waits for its cluster; None if it does not wait."""
        if job.cluster is None or not waits(job):
            return None
        older = sa.and_(Job.priority == job.priority, Job.created_at < job.created_at)
        before = sa.or_(Job.priority > job.priority, older)
        with self._read() as session:
            return _position(session, job.cluster, before)

    def clusters(self) -> dict[str, QueuePosition]:
        """By address: how many jobs run, how many may, how many wait."""
        with self._read() as session:
            known = session.scalars(sa.select(Cluster.address).order_by(Cluster.address)).all()
            return {address: _position(session, address, sa.true()) for address in known}

    # Entering

    def by_key(self, key: str) -> Job | None:
        """The job that was submitted with this key."""
        return next(iter(self._list(sa.select(Job).where(Job.key == key))), None)

    def set_limit(self, cluster: str, max_jobs: int | None) -> None:
        """Know a cluster; ``max_jobs`` jobs at once from now on, if it is given."""
        row = {"address": cluster, "max_jobs": MAX_JOBS if max_jobs is None else max_jobs}
        with self._write() as session:
            if max_jobs is None:
                insert_missing(session, Cluster, [row])
            else:
                insert_or_replace(session, Cluster, [row], ["address"])

    def requeue(
        self,
        job_id: str,
        reason: str,
        *,
        cluster: str | None,
        fresh: bool = False,
        dry_run: bool = False,
    ) -> None:
        """Let a job that failed, was cancelled or was lost wait for ``cluster`` again.

        Whoever still works on it without knowing that it was lost is shut out. What is known of
        its rounds is forgotten if it is to start ``fresh``. With ``dry_run`` all is done, and
        undone. Raises ``LeaseHeldError`` if somebody works on it, and
        ``StateConflictError`` if it waits already or has succeeded.
        """
        with self._write() as session:
            lease, job, now = _locked(session, job_id)
            if _held(lease, now):
                raise LeaseHeldError(
                    f"job {job_id} is being worked on by {lease.owner}; "
                    f"`tintray watch {job_id}` follows it"
                )
            waits = job.state is JobState.QUEUED and job.cluster is not None
            if waits or job.state is JobState.SUCCEEDED:
                raise StateConflictError(f"job {job_id} is {job.state} ({job.reason})")
            if not job.state.terminal:
                change_state(session, job, JobState.FAILED, "nobody worked on it", now)
            job.cluster, job.stop_at, job.stop_reason = cluster, None, None
            _queue_again(session, lease, job, reason, now)
            if fresh:
                session.execute(sa.delete(Round).where(Round.job_id == job_id))
            if dry_run:
                session.rollback()

    def lost(self, cluster: str) -> list[Claim]:
        """Jobs of a cluster whose drivers are gone, by their leases, and that may go on."""
        with self._read() as session:
            now = database_time(session)
            gone = sa.or_(Lease.owner.is_(None), Lease.expires_at <= now)
            query = sa.select(Job).join(Lease, Lease.job_id == Job.id)
            mine = query.where(Job.cluster == cluster, Job.state.in_(BEGUN), gone)
            return [
                Claim(job.id, job.attempt)
                for job in session.scalars(mine)
                if job.stop_at is not None or _went_on(session, job) < most_restarts(job)
            ]

    def restart_lost(self, claim: Claim) -> bool:
        """Let a job whose driver is gone wait for its cluster again; False if it is not.

        It is not if somebody works on it by now, or if it has gone on by itself as often as it may.
        """
        with self._write() as session:
            lease, job, now = _locked(session, claim.job_id)
            if job.state not in BEGUN or _held(lease, now) or job.attempt != claim.attempt:
                return False
            return _restart(session, lease, job, f"its driver was lost while {job.state}", now)

    # Handing over

    def claim(self, cluster: str) -> Claim | None:
        """The job that goes next to ``cluster``, if it may run one more; it is then ours."""
        while True:
            with self._write() as session:
                place = session.get(Cluster, cluster, with_for_update=True)
                now = database_time(session)
                if place is None or _running(session, cluster, now) >= place.max_jobs:
                    return None
                order = (Job.priority.desc(), Job.created_at, Job.id)
                job = session.scalar(_waiting(cluster, now).order_by(*order).limit(1))
                if job is None:
                    return None
                if _handovers(session, job) < ATTEMPTS:
                    lease = session.get(Lease, job.id, with_for_update=True)
                    if lease is not None and lease.owner is not None:
                        _revoke(lease)  # of a driver that was silent as it began
                    job.attempt, job.handed_at = job.attempt + 1, now
                    return Claim(job.id, job.attempt)
                reason = (
                    f"handed over to the cluster {ATTEMPTS} times without a sign of life; "
                    f"`tintray logs {job.id}` may say why"
                )
                change_state(session, job, JobState.FAILED, reason, now)

    def mark_submitted(self, claim: Claim) -> None:
        """Note that a job was handed over: its cluster has taken it."""
        with self._write() as session:
            _, job, now = _locked(session, claim.job_id)
            reason = f"handed over to {job.cluster} (attempt {claim.attempt})"
            waited = JobState.QUEUED  # its driver may have begun by now
            note_event(session, job.id, waited, waited, reason, now)

    def release(self, claim: Claim) -> None:
        """Let a job wait again that could not be handed over; that counts for nothing."""
        mine = sa.and_(Job.id == claim.job_id, Job.attempt == claim.attempt)
        waits = sa.and_(mine, Job.state == JobState.QUEUED)
        with self._write() as session:
            session.execute(sa.update(Job).where(waits).values(handed_at=None))

    def fail_unstarted(self, claim: Claim, reason: str) -> bool:
        """Note that a job which was handed over ended before it began; False if it has begun."""
        with self._write() as session:
            lease, job, now = _locked(session, claim.job_id)
            begun = _held(lease, now) or job.state is not JobState.QUEUED
            if begun or job.attempt != claim.attempt:
                return False
            change_state(session, job, JobState.FAILED, reason, now)
            return True

    def mark_dead(self, claim: Claim, reason: str) -> bool:
        """Note that the process which worked on a job is dead; False if the job is over.

        For whoever has seen it die; its lease ends with this, without waiting until it runs out.
        The job waits for its cluster again, or has failed if it has gone on as often as it may.
        """
        with self._write() as session:
            lease, job, now = _locked(session, claim.job_id)
            if job.state.terminal or job.attempt != claim.attempt:
                return False
            if job.state is JobState.QUEUED and job.cluster is not None:
                _revoke(lease)  # it had not begun: its cluster is given it again, not for ever
                job.handed_at = None
            elif job.cluster is None or not _restart(session, lease, job, reason, now):
                _revoke(lease)
                change_state(session, job, JobState.FAILED, reason, now)
            return True

    # Stopping

    def request_stop(self, job_id: str, reason: str, *, dry_run: bool = False) -> JobState:
        """Ask whoever works on a job to stop; one that nobody works on is cancelled at once.

        Returns the state that it is in by then; with ``dry_run`` it is not. Raises
        ``StateConflictError`` if it is over.
        """
        with self._write() as session:
            lease, job, now = _locked(session, job_id)
            if job.state.terminal:
                raise StateConflictError(f"job {job_id} is {job.state} ({job.reason})")
            job.stop_at, job.stop_reason = job.stop_at or now, redact(reason)
            if not _held(lease, now):
                change_state(session, job, JobState.CANCELLED, reason, now)
            state = job.state
            if dry_run:
                session.rollback()
            return state

    def stop_requested(self, job_id: str) -> str | None:
        """Why a job was asked to stop, if it was."""
        asked = sa.and_(Job.id == job_id, Job.stop_at.is_not(None))
        reason = sa.func.coalesce(Job.stop_reason, "cancelled")
        return next(iter(self._list(sa.select(reason).where(asked))), None)


def _held(lease: Lease, now: datetime) -> bool:
    return lease.owner is not None and lease.expires_at is not None and lease.expires_at > now


def _revoke(lease: Lease) -> None:
    lease.owner, lease.expires_at, lease.token = None, None, lease.token + 1


def _restart(session: Session, lease: Lease, job: Job, reason: str, now: datetime) -> bool:
    """Let a job wait again whose driver is gone; False if it went on as often as it may.

    One that was asked to stop stops here.
    """
    if job.stop_at is not None:
        _revoke(lease)
        change_state(session, job, JobState.CANCELLED, job.stop_reason or reason, now)
        return True
    before, most = _went_on(session, job), most_restarts(job)
    if before >= most:
        return False
    said = f"{reason}: the job goes on with a new driver ({before + 1} of {most})"
    _queue_again(session, lease, job, said, now)
    return True


def _went_on(session: Session, job: Job) -> int:
    """How often a job went on by itself."""
    return len(recoveries(session, job.id))


def _queue_again(session: Session, lease: Lease, job: Job, reason: str, now: datetime) -> None:
    """Let a job wait; whoever worked on it is shut out, and its next attempt has another name."""
    _revoke(lease)
    change_state(session, job, JobState.QUEUED, reason, now)
    job.handed_at, job.attempt = None, job.attempt + 1


def _locked(session: Session, job_id: str) -> tuple[Lease, Job, datetime]:
    """A job and its lease, held until the transaction ends; the lease first, as everywhere."""
    lease = session.get(Lease, job_id, with_for_update=True)
    job = session.get(Job, job_id, with_for_update=True)
    if lease is None or job is None:
        raise no_job(session, job_id)
    return lease, job, database_time(session)


def _active(cluster: str, now: datetime) -> sa.ColumnElement[bool]:
    """Jobs that a cluster is busy with: somebody works on them, or is about to."""
    held = sa.and_(Lease.owner.is_not(None), Lease.expires_at > now)
    patience = timedelta(seconds=HANDOVER)
    fresh = Job.handed_at.between(now - patience, now + patience)  # the clock may have been stepped
    gone = sa.and_(Lease.owner.is_not(None), Lease.expires_at <= now)  # it died as it began
    busy = sa.or_(held, sa.and_(Job.state == JobState.QUEUED, fresh, sa.not_(gone)))
    return sa.and_(Job.cluster == cluster, Job.state.in_(ALIVE), busy)


def _running(session: Session, cluster: str, now: datetime) -> int:
    query = sa.select(sa.func.count(Job.id)).outerjoin(Lease, Lease.job_id == Job.id)
    return session.scalar(query.where(_active(cluster, now))) or 0


def _waiting(cluster: str, now: datetime) -> sa.Select[Job]:
    """Jobs that wait for a cluster; also those that were handed over and never began."""
    idle = sa.not_(sa.func.coalesce(_active(cluster, now), sa.false()))
    mine = sa.and_(Job.cluster == cluster, Job.state == JobState.QUEUED, idle)
    return sa.select(Job).outerjoin(Lease, Lease.job_id == Job.id).where(mine)


def _position(session: Session, cluster: str, ahead: sa.ColumnElement[bool]) -> QueuePosition:
    now = database_time(session)
    limit = sa.select(Cluster.max_jobs).where(Cluster.address == cluster)
    waiting = _waiting(cluster, now).where(ahead).subquery()
    return QueuePosition(
        _running(session, cluster, now),
        session.scalar(limit) or MAX_JOBS,
        session.scalar(sa.select(sa.func.count()).select_from(waiting)) or 0,
    )


def _handovers(session: Session, job: Job) -> int:
    """How often a job was handed over since it has begun to wait."""
    changes = sa.and_(Event.job_id == job.id, Event.to_state == JobState.QUEUED)
    since = sa.select(sa.func.max(Event.id)).where(
        changes, sa.or_(Event.from_state.is_(None), Event.from_state != JobState.QUEUED)
    )
    query = sa.select(sa.func.count()).where(changes, Event.id > since.scalar_subquery())
    return session.scalar(query) or 0
