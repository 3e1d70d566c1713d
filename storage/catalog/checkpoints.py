"""What the catalog knows of checkpoints: the state of a job at the end of a round, as blobs.

A checkpoint is a manifest and the blobs that it names. They are kept from being collected for as
long as they are entered here, whatever became of the job: one that failed or was cancelled can be
resumed. A job that succeeded has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.catalog.artifacts import (
    CHECKPOINT,
    KnownArtifact,
    enter_artifacts,
    forget_uses,
)
from tintray.storage.catalog.database import Repository, insert_or_replace
from tintray.storage.catalog.leases import fence
from tintray.storage.catalog.tables import CheckpointRow


class Checkpoints(Repository):
    """The checkpoints of the jobs in a catalog."""

    def record(
        self, job_id: str, round: int, manifest: BlobRef, parts: Sequence[BlobRef], *, token: int
    ) -> None:
        """Enter a checkpoint whose blobs are all in the store.

        Raises ``LeaseLostError`` if another owner works on the job.
        """
        blobs = {ref.sha256: ref for ref in (manifest, *parts)}
        row = {
            "job_id": job_id,
            "round": round,
            "sha256": manifest.sha256,
            "parts": [ref.sha256 for ref in parts],
            "size": sum(ref.size for ref in blobs.values()),
            "at": datetime.now(UTC),
        }
        known = [KnownArtifact(ref, CHECKPOINT, {"round": round}) for ref in blobs.values()]
        with self._write() as session:
            fence(session, job_id, token)
            enter_artifacts(session, known, job_id)
            insert_or_replace(session, CheckpointRow, [row], ["job_id", "round"])

    def of(self, job_id: str) -> list[CheckpointRow]:
        """The checkpoints of a job, the newest round first."""
        return self._list(_of(job_id))

    def drop(self, job_id: str, *, keep: int = 0, token: int | None = None) -> set[str]:
        """Forget all but the ``keep`` newest; returns the blobs that nobody needs any more.

        They are the caller's to delete; gc finds those that it does not come to. Raises
        ``LeaseLostError`` if another owner works on the job.
        """
        with self._write() as session:
            fence(session, job_id, token)
            found = list(session.scalars(_of(job_id)))
            kept = {sha256 for one in found[:keep] for sha256 in (one.sha256, *one.parts)}
            gone = {sha256 for one in found[keep:] for sha256 in (one.sha256, *one.parts)} - kept
            for one in found[keep:]:
                session.delete(one)
            return forget_uses(session, job_id, gone)


def _of(job_id: str) -> sa.Select[CheckpointRow]:
    mine = CheckpointRow.job_id == job_id
    return sa.select(CheckpointRow).where(mine).order_by(CheckpointRow.round.desc())
