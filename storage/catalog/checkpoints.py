"""What the catalog knows of checkpoints: the state of a job at the end of a round, as blobs.

A checkpoint is a manifest and the blobs that it names. They are kept from being collected for as
long as they are entered here, whatever became of the job: one that failed or was cancelled can be
resumed. A job that succeeded has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.catalog import leases, lineage
from tintray.storage.catalog.database import Database
from tintray.storage.catalog.tables import Artifact, ArtifactUse, Checkpoint
from tintray.storage.catalog.usage import CHECKPOINT


class Checkpoints:
    """The checkpoints of the jobs in a catalog."""

    def __init__(self, database: Database) -> None:
        self._read = database.read
        self._write = database.write

    def record(
        self, job_id: str, round: int, manifest: BlobRef, parts: Sequence[BlobRef], *, token: int
    ) -> None:
        """Enter a checkpoint whose blobs are all in the store.

        Raises ``LeaseLostError`` if another owner works on the job.
        """
        now = datetime.now(UTC)
        blobs = {ref.sha256: ref for ref in (manifest, *parts)}
        meta = {"round": round}
        artifacts = [lineage.artifact_row(ref, CHECKPOINT, meta, now) for ref in blobs.values()]
        row = {
            "job_id": job_id,
            "round": round,
            "sha256": manifest.sha256,
            "parts": [ref.sha256 for ref in parts],
            "size": sum(ref.size for ref in blobs.values()),
            "at": now,
        }
        with self._write() as session:
            leases.fence(session, job_id, token)
            lineage.insert_missing(session, Artifact, artifacts)
            uses = [{"job_id": job_id, "sha256": sha256} for sha256 in blobs]
            lineage.insert_missing(session, ArtifactUse, uses)
            lineage.insert_or_replace(session, Checkpoint, [row], ["job_id", "round"])

    def of(self, job_id: str) -> list[Checkpoint]:
        """The checkpoints of a job, the newest round first."""
        with self._read() as session:
            return _of(session, job_id)

    def drop(self, job_id: str, *, keep: int = 0, token: int | None = None) -> set[str]:
        """Forget all but the ``keep`` newest; returns the blobs that nobody needs any more.

        They are the caller's to delete; gc finds those that it does not come to. Raises
        ``LeaseLostError`` if another owner works on the job.
        """
        with self._write() as session:
            leases.fence(session, job_id, token)
            found = _of(session, job_id)
            kept = {sha256 for one in found[:keep] for sha256 in (one.sha256, *one.parts)}
            gone = {sha256 for one in found[keep:] for sha256 in (one.sha256, *one.parts)} - kept
            for one in found[keep:]:
                session.delete(one)
            return lineage.forget_uses(session, job_id, gone)


def _of(session: Session, job_id: str) -> list[Checkpoint]:
    query = sa.select(Checkpoint).where(Checkpoint.job_id == job_id)
    return list(session.scalars(query.order_by(Checkpoint.round.desc())))
