"""Artifacts, and who needs which: merges, jobs, pins. What nobody needs may be collected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tintray.errors import NotFoundError
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.catalog.database import Repository, insert_missing
from tintray.storage.catalog.states import OVER
from tintray.storage.catalog.tables import Artifact, ArtifactUse, Job, Merge, MergeFile
from tintray.storage.secrets import scrub

CHECKPOINT = "checkpoint"
"""The kind of the artifacts of a checkpoint, which are needed until it is dropped."""

_BATCH = 500  # values in one statement: SQLite takes a bounded number


@dataclass(frozen=True)
class KnownArtifact:
    """A blob to be entered: what it is (``kind``, such as ``"task-vector"``), and of what."""

    ref: BlobRef
    kind: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class Artifacts(Repository):
    """The artifacts that a catalog knows."""

    def record(self, found: Iterable[KnownArtifact], *, job_id: str | None = None) -> None:
        """Know some blobs, in one transaction; one that is known already keeps its kind.

        With ``job_id``, they are kept from being collected while that job is not over, and for as
        long as a merge that it published is there.
        """
        with self._write() as session:
            enter_artifacts(session, found, job_id)

    def all(self, kind: str | None = None, *, job_id: str | None = None) -> list[Artifact]:
        """The known artifacts, of a kind, or that a job has used; oldest first."""
        query = sa.select(Artifact).order_by(Artifact.created_at, Artifact.sha256)
        if kind is not None:
            query = query.where(Artifact.kind == kind)
        if job_id is not None:
            query = query.join(ArtifactUse, ArtifactUse.sha256 == Artifact.sha256)
            query = query.where(ArtifactUse.job_id == job_id)
        return self._list(query)

    def pin(self, sha256: str, pinned: bool = True) -> None:
        """Keep an artifact from being collected, or no longer."""
        with self._write() as session:
            found = session.get(Artifact, sha256)
            if found is None:
                raise NotFoundError(f"there is no artifact {sha256} in the catalog")
            found.pinned_at = datetime.now(UTC) if pinned else None

    def users(self, sha256: str | None = None) -> dict[str, set[str]]:
        """By sha256, who needs an artifact (or only this one).

        Users are ``merge name/v1``, ``job name-1a2b3c4d`` and ``pin``. A merge needs its files and
        what the job that published it was computed from; a job needs what it has used until it is
        over, and its checkpoints until they are dropped. One whose process died is not over: it
        may be continued.
        """
        with self._read() as session:
            return _users(session, sha256)

    def needed(self) -> set[str]:
        """Hashes of the artifacts that a merge, a job that is not over or a pin needs."""
        return set(self.users())

    def forget(self, hashes: Iterable[str]) -> None:
        """Drop the rows of artifacts that were deleted; those that are needed by now stay."""
        with self._write() as session:
            for batch in _batches(set(hashes) - _users(session).keys()):
                for table in (ArtifactUse, MergeFile, Artifact):
                    session.execute(sa.delete(table).where(table.sha256.in_(batch)))

    def store_urls(self) -> set[str]:
        """The stores that jobs and merges of this catalog name, as they were written."""
        with self._read() as session:
            found = set(session.scalars(sa.select(Job.store_url).distinct()))
            urls = session.scalars(sa.select(Merge.url).where(Merge.url.is_not(None)))
            return found | {url.rpartition("/merges/")[0] for url in urls if url is not None}


def enter_artifacts(
    session: Session, found: Iterable[KnownArtifact], job_id: str | None = None
) -> None:
    """Know some blobs, and that a job uses them; one that is known already keeps its kind."""
    now = datetime.now(UTC)
    rows = {
        item.ref.sha256: {
            "sha256": item.ref.sha256,
            "size": item.ref.size,
            "kind": item.kind,
            "meta": scrub(dict(item.meta)),
            "created_at": now,
        }
        for item in found
    }
    insert_missing(session, Artifact, list(rows.values()))
    if job_id is not None:
        uses = [{"job_id": job_id, "sha256": sha256} for sha256 in rows]
        insert_missing(session, ArtifactUse, uses)


def forget_uses(session: Session, job_id: str, hashes: Iterable[str]) -> set[str]:
    """Note that a job needs some artifacts no more; returns those that are now forgotten.

    What another job or a merge has used, or what is pinned, stays known.
    """
    forgotten: set[str] = set()
    for batch in _batches(set(hashes)):
        mine = sa.and_(ArtifactUse.job_id == job_id, ArtifactUse.sha256.in_(batch))
        session.execute(sa.delete(ArtifactUse).where(mine))
        used = sa.select(ArtifactUse.sha256).union(sa.select(MergeFile.sha256))
        loose = sa.and_(
            Artifact.sha256.in_(batch), Artifact.pinned_at.is_(None), Artifact.sha256.not_in(used)
        )
        gone = session.scalars(sa.delete(Artifact).where(loose).returning(Artifact.sha256))
        forgotten.update(gone)
    return forgotten


def _batches(hashes: set[str]) -> Iterator[list[str]]:
    ordered = sorted(hashes)
    return (ordered[at : at + _BATCH] for at in range(0, len(ordered), _BATCH))


def _users(session: Session, only: str | None = None) -> dict[str, set[str]]:
    def of(column: Any, user: Any) -> sa.Select[str, str]:
        return sa.select(column, user).where(sa.true() if only is None else column == only)

    merge = sa.literal("merge ") + Merge.name + "/v" + sa.cast(Merge.version, sa.String)
    there = (Merge.published_at.is_not(None), Merge.removed_at.is_(None))
    inputs = of(ArtifactUse.sha256, merge).join(Merge, Merge.job_id == ArtifactUse.job_id)
    used = of(ArtifactUse.sha256, sa.literal("job ") + Job.id).join(Job)
    needed = sa.or_(Job.state.not_in(OVER), Artifact.kind == CHECKPOINT)
    query = sa.union(
        of(MergeFile.sha256, merge).join(Merge).where(*there),
        inputs.where(*there),
        used.join(Artifact, Artifact.sha256 == ArtifactUse.sha256).where(needed),
        of(Artifact.sha256, sa.literal("pin")).where(Artifact.pinned_at.is_not(None)),
    )
    users: dict[str, set[str]] = {}
    for sha256, user in session.execute(query):
        users.setdefault(sha256, set()).add(user)
    return users
