"""Who needs which artifact: published merges, jobs, pins. What nobody needs may be collected."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, Session

from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Artifact, ArtifactUse, Job, Merge, MergeFile

PIN = "pin"
CHECKPOINT = "checkpoint"
"""The kind of the artifacts of a checkpoint, which are needed until it is dropped."""

_BATCH = 500  # values in one statement: SQLite takes a bounded number


def users(session: Session, only: str | None = None) -> dict[str, set[str]]:
    """By sha256, who needs an artifact: ``merge name/v1``, ``job name-1a2b3c4d`` or ``pin``.

    A merge needs its files and what the job that published it was computed from; a job needs what
    it has used until it is over, and its checkpoints until they are dropped. One whose process died
    is not over: it may be continued.
    """
    found: dict[str, set[str]] = {}
    for sha256, name, version in session.execute(_of_merges(only)):
        found.setdefault(sha256, set()).add(f"merge {name}/v{version}")
    for sha256, job_id in session.execute(_of_jobs(only)):
        found.setdefault(sha256, set()).add(f"job {job_id}")
    pinned = sa.select(Artifact.sha256).where(
        Artifact.pinned_at.is_not(None), _is(Artifact.sha256, only)
    )
    for sha256 in session.scalars(pinned):
        found.setdefault(sha256, set()).add(PIN)
    return found


def _is(column: InstrumentedAttribute[str], only: str | None) -> sa.ColumnElement[bool]:
    return sa.true() if only is None else column == only


def _of_merges(only: str | None) -> sa.CompoundSelect[str, str, int]:
    there = sa.and_(Merge.published_at.is_not(None), Merge.removed_at.is_(None))
    files = (
        sa.select(MergeFile.sha256, Merge.name, Merge.version)
        .join(Merge, Merge.id == MergeFile.merge_id)
        .where(there, _is(MergeFile.sha256, only))
    )
    inputs = (
        sa.select(ArtifactUse.sha256, Merge.name, Merge.version)
        .join(Merge, Merge.job_id == ArtifactUse.job_id)
        .where(there, _is(ArtifactUse.sha256, only))
    )
    return sa.union(files, inputs)


def _of_jobs(only: str | None) -> sa.Select[str, str]:
    """What jobs that are not over have used, and the checkpoints that any job has."""
    over = [state for state in JobState if state.terminal]
    return (
        sa.select(ArtifactUse.sha256, ArtifactUse.job_id)
        .join(Job, Job.id == ArtifactUse.job_id)
        .join(Artifact, Artifact.sha256 == ArtifactUse.sha256)
        .where(
            sa.or_(Job.state.not_in(over), Artifact.kind == CHECKPOINT),
            _is(ArtifactUse.sha256, only),
        )
    )


def forget(session: Session, hashes: Iterable[str]) -> None:
    """Drop the rows of artifacts that were deleted, but for those that are needed by now."""
    gone = sorted(set(hashes) - users(session).keys())
    for start in range(0, len(gone), _BATCH):
        batch = gone[start : start + _BATCH]
        for table in (ArtifactUse, MergeFile, Artifact):
            session.execute(sa.delete(table).where(table.sha256.in_(batch)))


def store_urls(session: Session) -> set[str]:
    """The stores that jobs and merges of this catalog name, as they were written."""
    found = set(session.scalars(sa.select(Job.store_url).distinct()))
    urls = session.scalars(sa.select(Merge.url).where(Merge.url.is_not(None)))
    return found | {url.rpartition("/merges/")[0] for url in urls if url is not None}
