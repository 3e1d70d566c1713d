"""Leases: at most one owner works on a job, and a fencing token shuts out the ones before.

An owner that was only slow, not dead, may wake up after its lease went to another. Every write it
then tries carries its old token and is refused: the token in the table has grown.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tintray.errors import LeaseHeldError, LeaseLostError, NotFoundError
from tintray.storage.catalog.database import Repository
from tintray.storage.catalog.tables import Lease


class Leases(Repository):
    """The leases of the jobs in a catalog."""

    def acquire(self, job_id: str, owner: str, ttl: float) -> int:
        """Take a lease for ``ttl`` seconds if it is free, run out, or this owner's own.

        Returns its fencing token, which has grown. Raises ``LeaseHeldError`` while another owner's
        lease runs.
        """
        with self._write() as session:
            now = database_time(session)
            free = sa.or_(Lease.owner.is_(None), Lease.owner == owner, Lease.expires_at <= now)
            taken: int | None = session.scalar(
                sa.update(Lease)
                .where(Lease.job_id == job_id, free)
                .values(owner=owner, token=Lease.token + 1, expires_at=now + timedelta(seconds=ttl))
                .returning(Lease.token)
            )
            if taken is not None:
                return taken
            lease = _current(session, job_id)
        until = f"{lease.expires_at:%Y-%m-%d %H:%M:%S} UTC" if lease.expires_at else "a moment ago"
        raise LeaseHeldError(
            f"job {job_id} is being worked on by {lease.owner}, whose lease runs until {until}; "
            "wait for it or stop that process"
        )

    def renew(self, job_id: str, token: int, ttl: float) -> None:
        """Keep a lease for ``ttl`` more seconds; ``LeaseLostError`` means: stop working at once."""
        with self._write() as session:
            expires = database_time(session) + timedelta(seconds=ttl)
            renewed = session.scalar(
                sa.update(Lease)
                .where(Lease.job_id == job_id, Lease.token == token, Lease.owner.is_not(None))
                .values(expires_at=expires)
                .returning(Lease.token)
            )
            if renewed is None:
                raise _lost(session, job_id, token)

    def release(self, job_id: str, token: int) -> None:
        """Give a lease back; harmless if it is no longer ours."""
        mine = sa.and_(Lease.job_id == job_id, Lease.token == token)
        with self._write() as session:
            session.execute(sa.update(Lease).where(mine).values(owner=None, expires_at=None))

    def current(self, job_id: str) -> Lease:
        """Who holds a job's lease, and until when."""
        with self._read() as session:
            return _current(session, job_id)


def database_time(session: Session) -> datetime:
    """The clock that leases are judged by: the server's, since hosts disagree about the time."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    moment: datetime = session.scalars(sa.select(sa.func.clock_timestamp())).one()
    return moment.astimezone(UTC)


def fence(session: Session, job_id: str, token: int | None) -> None:
    """Hold the lease row until this transaction ends, or refuse a token that is not current."""
    if token is not None:
        held = session.get(Lease, job_id, with_for_update={"read": True})
        if held is None or held.token != token or held.owner is None:
            raise _lost(session, job_id, token)


def _current(session: Session, job_id: str) -> Lease:
    lease = session.get(Lease, job_id)
    if lease is None:
        raise NotFoundError(f"there is no job {job_id} in the catalog")
    return lease


def _lost(session: Session, job_id: str, token: int) -> LeaseLostError:
    lease = _current(session, job_id)
    return LeaseLostError(
        f"the lease of job {job_id} is no longer ours: we hold token {token}, the catalog has "
        f"{lease.token} ({lease.owner or 'released'}); another process continues this job"
    )
