"""The catalog: what is known of jobs, models, merges and artifacts, and the truth about each.

Every change of a job's state is a compare-and-set with its reason kept as an event; whoever works
on a job holds its lease. Transactions are short: SQLite writers wait for each other in turn.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import sqlalchemy as sa

from tintray.errors import NotFoundError, StorageError
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.artifacts.urls import check_name
from tintray.storage.catalog import inputs, leases, lineage, usage
from tintray.storage.catalog.checkpoints import Checkpoints
from tintray.storage.catalog.database import Database
from tintray.storage.catalog.inputs import KnownModel, KnownPool, KnownTask
from tintray.storage.catalog.lineage import LayerSummary
from tintray.storage.catalog.queue import Queue, no_job
from tintray.storage.catalog.states import JobState, StateConflictError
from tintray.storage.catalog.tables import (
    Artifact,
    ArtifactUse,
    Coefficient,
    Event,
    Job,
    Lease,
    Merge,
    MergeFile,
    Model,
    Pool,
    Round,
    Task,
)
from tintray.storage.secrets import redact, scrub, shown_url


@dataclass(frozen=True)
class Known:
    """A blob to be entered: what it is (``kind``, such as ``"task-vector"``), and of what."""

    ref: BlobRef
    kind: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class Catalog:
    """A connection pool to the catalog; safe to share between threads, cheap to open.

    Open one per process with :meth:`open`, and close it or use it as a context manager.
    """

    def __init__(self, database: Database):
        self.url = database.url
        self._database = database
        self._read = database.read
        self._write = database.write
        self.checkpoints = Checkpoints(database)
        self.queue = Queue(database)

    @classmethod
    def open(cls, url: str, create: bool = True, *, patience: float = 20.0) -> Self:
        """Open the catalog at ``sqlite:///path`` or ``postgresql+psycopg://user@host/name``.

        With ``create``, an absent SQLite file and absent tables are made. Later operations wait up
        to ``patience`` seconds for a server that has gone away (it restarts, or fails over).
        Raises ``SpecError`` for a URL that is none,
        ``StorageError`` for a database that cannot be used or whose schema
        does not fit, and ``NotFoundError`` if there is none.
        """
        return cls(Database.open(url, create, patience))

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Jobs

    def create_job(
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
                    spec=_clean(spec),
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
            session.add(_event(job_id, None, JobState.QUEUED, "submitted", now))
        return job_id

    def transition(
        self,
        job_id: str,
        from_states: JobState | Iterable[JobState],
        to: JobState,
        reason: str,
        *,
        token: int | None = None,
    ) -> None:
        """Change a job's state if it is one of ``from_states``, with the reason as an event.

        ``token``, if given, must be that of the lease in force. Raises
        ``StateConflictError`` if the job is in another state by now, and
        ``LeaseLostError`` if another owner works on it.
        """
        allowed = {from_states} if isinstance(from_states, JobState) else set(from_states)
        now = datetime.now(UTC)
        reason = redact(reason)
        with self._write() as session:
            leases.fence(session, job_id, token)
            # Locked, so that the state that the event names is the one that is replaced.
            found = session.scalar(sa.select(Job.state).where(Job.id == job_id).with_for_update())
            if found is None:
                raise no_job(session, job_id, self.url)
            if found not in allowed:
                raise StateConflictError(
                    f"job {job_id} is {found}, not {' or '.join(sorted(allowed))}: it cannot "
                    f"become {to}; another process changed it first"
                )
            change = {"state": to, "reason": reason, "updated_at": now}
            session.execute(sa.update(Job).where(Job.id == job_id).values(change))
            session.add(_event(job_id, found, to, reason, now))

    def job(self, job_id: str) -> Job:
        """One job; ``NotFoundError`` with the nearest id if there is none."""
        with self._read() as session:
            job = session.get(Job, job_id)
            if job is None:
                raise no_job(session, job_id, self.url)
            return job

    def jobs(self, states: Iterable[JobState] | None = None) -> list[Job]:
        """All jobs, or those in some states, oldest first."""
        query = sa.select(Job).order_by(Job.created_at, Job.id)
        if states is not None:
            query = query.where(Job.state.in_(list(states)))
        with self._read() as session:
            return list(session.scalars(query))

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """The changes of a job's state, oldest first; those with an id above ``after``."""
        mine = sa.and_(Event.job_id == job_id, Event.id > after)
        query = sa.select(Event).where(mine).order_by(Event.id)
        with self._read() as session:
            return list(session.scalars(query))

    # Leases

    def acquire_lease(self, job_id: str, owner: str, ttl: float) -> int:
        """Take a job's lease for ``ttl`` seconds; returns its fencing token, which grows.

        Raises ``LeaseHeldError`` while another owner's lease runs.
        """
        with self._write() as session:
            return leases.acquire(session, job_id, owner, ttl)

    def renew_lease(self, job_id: str, token: int, ttl: float) -> None:
        """The heartbeat; ``LeaseLostError`` means: stop working at once."""
        with self._write() as session:
            leases.renew(session, job_id, token, ttl)

    def release_lease(self, job_id: str, token: int) -> None:
        """Give a lease back; harmless if it is no longer ours."""
        with self._write() as session:
            leases.release(session, job_id, token)

    def lease(self, job_id: str) -> Lease:
        """Who holds a job's lease, and until when."""
        with self._read() as session:
            return leases.current(session, job_id)

    # Rounds

    def record_rounds(
        self, job_id: str, batch: Mapping[int, Mapping[str, Any]], *, token: int | None = None
    ) -> None:
        """Keep the metrics of some rounds, in one transaction. A repeated round is replaced."""
        now = datetime.now(UTC)
        rows = [
            {"job_id": job_id, "round": number, "at": now, "metrics": _clean(metrics)}
            for number, metrics in batch.items()
        ]
        with self._write() as session:
            leases.fence(session, job_id, token)
            lineage.insert_or_replace(session, Round, rows, ["job_id", "round"])

    def rounds(self, job_id: str, *, after: int = -1) -> list[Round]:
        """The recorded rounds of a job above ``after``, in order."""
        mine = sa.and_(Round.job_id == job_id, Round.round > after)
        query = sa.select(Round).where(mine).order_by(Round.round)
        with self._read() as session:
            return list(session.scalars(query))

    def last_round(self, job_id: str) -> Round | None:
        """The last recorded round of a job, if there is one."""
        query = sa.select(Round).where(Round.job_id == job_id).order_by(Round.round.desc())
        with self._read() as session:
            return session.scalar(query.limit(1))

    # Models, pools, tasks

    def record_models(self, models: Sequence[KnownModel]) -> None:
        """Know some models, in one transaction; a base comes before its experts."""
        with self._write() as session:
            inputs.record_models(session, models)

    def record_pools(self, pools: Sequence[KnownPool]) -> None:
        """Know some adaptation pools, in one transaction."""
        with self._write() as session:
            inputs.record_pools(session, pools)

    def record_tasks(self, job_id: str, tasks: Sequence[KnownTask]) -> None:
        """Know the tasks of a job, in one transaction."""
        with self._write() as session:
            inputs.record_tasks(session, job_id, tasks)

    def models(self) -> list[Model]:
        """All known models, oldest first."""
        with self._read() as session:
            return list(session.scalars(sa.select(Model).order_by(Model.created_at)))

    def pools(self) -> list[Pool]:
        """All known pools, oldest first."""
        with self._read() as session:
            return list(session.scalars(sa.select(Pool).order_by(Pool.created_at)))

    def tasks(self, job_id: str) -> list[Task]:
        """The tasks of a job, by name."""
        query = sa.select(Task).where(Task.job_id == job_id).order_by(Task.name)
        with self._read() as session:
            return list(session.scalars(query))

    # Merges

    def reserve_merge(
        self,
        name: str,
        job_id: str | None = None,
        *,
        at_least: int = 1,
        head: int | None = None,
    ) -> int:
        """A version number for ``publish_merge`` that nobody else gets.

        ``at_least`` is for a store that has merges which this catalog does not know. A job that
        asks again after it was restarted gets the number that it holds, whatever ``at_least``: it
        may have published under it without having entered it here. ``head`` is for a child: the
        newest version when its job began; ``ParentChangedError`` if there is
        a newer one, or one on its way.
        """
        check_name(name, "merge name")
        for _ in range(100):
            try:
                with self._write() as session:
                    return lineage.reserve(session, name, job_id, at_least, head)
            except StorageError as error:
                # The unique constraint chose another client; the next number is free.
                if not isinstance(error.__cause__, sa.exc.IntegrityError):
                    raise
        raise StorageError(f"merge {name}: no version could be reserved in {self.url}; try again")

    def record_merge(
        self,
        name: str,
        version: int,
        url: str,
        job_id: str | None = None,
        parent: str | None = None,
        manifest_sha256: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        *,
        added: Iterable[str] = (),
        files: Mapping[str, BlobRef] | None = None,
        coefficients: Iterable[LayerSummary] = (),
        token: int | None = None,
    ) -> Merge:
        """Enter a merge once its manifest is in the store; entering it again changes nothing.

        ``parent`` is a reference such as ``name/v2``; ``added`` names the tasks that the parent has
        not. Raises ``StorageError`` if the version is another merge's.
        """
        values = {
            "url": shown_url(url),
            "job_id": job_id,
            "manifest_sha256": manifest_sha256,
            "metrics": _clean(metrics or {}),
            "added": list(added),
        }
        with self._write() as session:
            if job_id is not None:
                leases.fence(session, job_id, token)
            merge = lineage.record(session, name, version, values, parent)
            lineage.add_files(session, merge, files or {})
            lineage.add_coefficients(session, merge, coefficients)
            return merge

    def list_merges(self) -> list[Merge]:
        """All published merges, oldest first."""
        with self._read() as session:
            return lineage.published(session)

    def find_merge(self, reference: str) -> Merge:
        """The merge that ``name`` (its newest version), ``name/v2`` or ``latest`` means."""
        with self._read() as session:
            return lineage.find(session, reference)

    def merge_of(self, job_id: str) -> str | None:
        """The merge that a job has published, ``name/v1``; also if it was removed since."""
        published = sa.and_(Merge.job_id == job_id, Merge.published_at.is_not(None))
        with self._read() as session:
            merge = session.scalar(sa.select(Merge).where(published).limit(1))
            return None if merge is None else merge.ref

    def parent(self, merge: Merge) -> Merge | None:
        """The merge that this one grew from."""
        with self._read() as session:
            return session.get(Merge, merge.parent_id) if merge.parent_id is not None else None

    def grew_from(self, reference: str) -> str | None:
        """What the merge ``name/v2`` grew from, as far as it is known; either may be removed."""
        with self._read() as session:
            return lineage.grew_from(session, reference)

    def children(self, reference: str) -> list[str]:
        """The merges that grew from ``name/v2`` and are there, oldest first."""
        with self._read() as session:
            return lineage.children(session, reference)

    def remove_merge(self, name: str, version: int) -> None:
        """Note that a merge is gone from its store; its version is never given again."""
        with self._write() as session:
            lineage.remove(session, name, version)

    def merge_files(self, merge: Merge) -> dict[str, BlobRef]:
        """The blobs that a merge consists of, by file name."""
        query = (
            sa.select(MergeFile.name, Artifact.sha256, Artifact.size)
            .join(Artifact)
            .where(MergeFile.merge_id == merge.id)
        )
        with self._read() as session:
            return {row.name: BlobRef(row.sha256, row.size) for row in session.execute(query)}

    def coefficients(self, merge: Merge) -> list[LayerSummary]:
        """The summary of a merge's coefficients, by layer."""
        query = sa.select(Coefficient).where(Coefficient.merge_id == merge.id)
        with self._read() as session:
            return [
                LayerSummary(row.layer, row.mean, row.spread, row.minimum, row.maximum)
                for row in session.scalars(query.order_by(Coefficient.layer))
            ]

    # Artifacts

    def record_artifacts(self, found: Iterable[Known], *, job_id: str | None = None) -> None:
        """Know some blobs, in one transaction; one that is known already keeps its kind.

        With ``job_id``, they are kept from being collected while that job is not over, and for as
        long as a merge that it published is there.
        """
        now = datetime.now(UTC)
        rows = {
            item.ref.sha256: lineage.artifact_row(item.ref, item.kind, _clean(item.meta), now)
            for item in found
        }
        with self._write() as session:
            lineage.insert_missing(session, Artifact, list(rows.values()))
            if job_id is not None:
                uses = [{"job_id": job_id, "sha256": sha256} for sha256 in rows]
                lineage.insert_missing(session, ArtifactUse, uses)

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """All known artifacts, or those of a kind, oldest first."""
        query = sa.select(Artifact).order_by(Artifact.created_at, Artifact.sha256)
        if kind is not None:
            query = query.where(Artifact.kind == kind)
        with self._read() as session:
            return list(session.scalars(query))

    def artifacts_of(self, job_id: str, kind: str) -> list[Artifact]:
        """The artifacts of a kind that a job has used, oldest first."""
        query = sa.select(Artifact).join(ArtifactUse, ArtifactUse.sha256 == Artifact.sha256)
        mine = sa.and_(ArtifactUse.job_id == job_id, Artifact.kind == kind)
        with self._read() as session:
            return list(session.scalars(query.where(mine).order_by(Artifact.created_at)))

    def pin(self, sha256: str, pinned: bool = True) -> None:
        """Keep an artifact from being collected, or no longer."""
        moment = datetime.now(UTC) if pinned else None
        with self._write() as session:
            found = session.get(Artifact, sha256)
            if found is None:
                raise NotFoundError(f"there is no artifact {sha256} in the catalog")
            found.pinned_at = moment

    def artifact_users(self, sha256: str | None = None) -> dict[str, set[str]]:
        """By sha256, who needs an artifact (or only this one): merges, unfinished jobs, pins."""
        with self._read() as session:
            return usage.users(session, sha256)

    def needed_artifacts(self) -> set[str]:
        """Hashes of the artifacts that a merge, a job that is not over or a pin needs."""
        return set(self.artifact_users())

    def forget_artifacts(self, hashes: Iterable[str]) -> None:
        """Drop the rows of artifacts that were deleted; those that are needed stay."""
        with self._write() as session:
            usage.forget(session, hashes)

    def store_urls(self) -> set[str]:
        """The stores that jobs and merges of this catalog name, as they were written."""
        with self._read() as session:
            return usage.store_urls(session)


def _clean(document: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = scrub(dict(document))
    assert isinstance(cleaned, dict)
    return cleaned


def _event(
    job_id: str, before: JobState | None, after: JobState, reason: str, at: datetime
) -> Event:
    return Event(job_id=job_id, at=at, from_state=before, to_state=after, reason=reason)
