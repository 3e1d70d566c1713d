"""Checkpoints of a fit, as artifacts: with one, a job goes on as if nothing had happened.

A checkpoint is the state at the end of a round: Λ with its optimiser, by the coordinator, and each
task group's tint layers with theirs, by the worker that hosts it. Random streams derive from (seed,
task, round) and groups are fixed by the job, so nothing else is needed. The blobs are safetensors;
a sealed manifest names them and what the fit stands on. A checkpoint exists when the catalog knows
it: blobs first, then the manifest, then the row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tintray.checkpoints.tensors import read_tensors, tensors_as_bytes
from tintray.errors import InputError, IntegrityError, NotFoundError, StorageError
from tintray.jobs.config.renamed import upgraded_path
from tintray.jobs.engine.coordinator import Coordinator
from tintray.jobs.engine.sources import cache_folder
from tintray.jobs.engine.worker import MARK, Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import CheckpointSaved, RoundDone
from tintray.seals import unseal
from tintray.storage.artifacts.blobs import BlobRef, blob_key, fetch_blob, get_blob, put_blob
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.records import seal
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.tables import CheckpointRow

FORMAT = "tintray-checkpoint"
FORMAT_VERSION = 1

INTERVAL = 60.0
"""Seconds of fitting between checkpoints, where the job does not say after how many rounds."""

MOST = 0.015
"""The share of the time that checkpoints may take: slow ones are written less often."""

KEPT = 2
"""How many are kept while a job runs: the one before the newest, should that be damaged."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a fit goes on: after how many rounds, and how long they took."""

    rounds: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Ownership:
    """The job that a checkpoint is of, and the token of the lease under which it is written."""

    job_id: str
    token: int

    def mark(self) -> Tensor:
        """A tensor that no other job's checkpoint has, so that its blobs can be deleted freely."""
        text = f"{self.job_id} {self.token}".encode()
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)


class Checkpoints:
    """Writes the checkpoints of one fit when they are due, and goes back to the last one.

    ``every`` so many rounds; None goes by time. ``basis`` is what the fit stands on, as hashes: a
    checkpoint of a fit that stood on something else is refused.
    """

    def __init__(
        self,
        store: ArtifactStore,
        catalog: Catalog,
        owner: Ownership,
        coordinator: Coordinator,
        workers: WorkerPool[Worker],
        *,
        every: int | None,
        basis: Mapping[str, str],
    ) -> None:
        self._store, self._catalog, self._owner = store, catalog, owner
        self._coordinator, self._workers = coordinator, workers
        self._every, self._basis = every, dict(basis)
        self._last_round, self._last_time, self._cost = 0, time.monotonic(), 0.0

    def due(self, round_: int) -> bool:
        """Whether a checkpoint is to be written after this round."""
        if self._every is not None:
            return round_ - self._last_round >= self._every
        return time.monotonic() - self._last_time >= max(INTERVAL, self._cost / MOST)

    def save(self, done: RoundDone) -> CheckpointSaved:
        """Write the state at the end of this round; then drop the checkpoints before the last two.

        Where the store or the catalog fails, those before are still there.
        """
        began = time.monotonic()
        groups = self._workers.save_groups(self._owner.mark())
        tensors, notes = self._coordinator.state()
        tensors = {**tensors, MARK: self._owner.mark()}
        coordinator = put_blob(self._store, tensors_as_bytes(tensors))
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "job_id": self._owner.job_id,
            "token": self._owner.token,
            "round": done.round,
            "seconds": done.seconds,
            "basis": self._basis,
            "notes": notes,
            "coordinator": vars(coordinator),
            "groups": {str(number): vars(ref) for number, ref in sorted(groups.items())},
        }
        parts = [coordinator, *groups.values()]
        ref = put_blob(self._store, seal(manifest, "the manifest of a checkpoint"))
        self._catalog.checkpoints.record(
            self._owner.job_id, done.round, ref, parts, token=self._owner.token
        )
        self._drop(keep=KEPT)
        self._last_round, self._last_time = done.round, time.monotonic()
        self._cost = self._last_time - began
        return CheckpointSaved(done.round, sum(part.size for part in (ref, *parts)), self._cost)

    def resume(self) -> Progress:
        """Go back to the newest checkpoint that is whole; round 0 if there is none."""
        found = self._catalog.checkpoints.of(self._owner.job_id)
        problem: StorageError | NotFoundError | None = None
        for checkpoint in found:
            try:
                progress = self._go_back(checkpoint)
                self._last_round = progress.rounds
                return progress
            except (IntegrityError, NotFoundError) as error:  # damaged: the one before may do
                _log.warning("the checkpoint of round %s is of no use: %s", checkpoint.round, error)
                problem = error
        if problem is not None:
            raise StorageError(
                f"job {self._owner.job_id} has {len(found)} checkpoints and none can be used: "
                f"{problem}; `tintray retry {self._owner.job_id}` starts it over"
            ) from problem
        return Progress()

    def discard(self) -> None:
        """Drop all checkpoints: the job succeeded and needs none."""
        self._drop(keep=0)

    def _drop(self, keep: int) -> None:
        job, token = self._owner.job_id, self._owner.token
        delete_blobs(self._store, self._catalog.checkpoints.drop(job, keep=keep, token=token))

    def _go_back(self, checkpoint: CheckpointRow) -> Progress:
        manifest = read_manifest(self._store, checkpoint.sha256)
        self._check_basis(manifest["basis"])
        refs = {int(number): BlobRef(**ref) for number, ref in manifest["groups"].items()}
        blob = fetch_blob(self._store, BlobRef(**manifest["coordinator"]), cache_folder())
        self._workers.load_groups(refs)
        self._coordinator.restore(read_tensors(blob), manifest["notes"])
        return Progress(manifest["round"], manifest["seconds"])

    def _check_basis(self, found: Mapping[str, str]) -> None:
        found = {upgraded_path(name): digest for name, digest in found.items()}
        names = sorted(found.keys() | self._basis.keys())
        changed = [name for name in names if found.get(name) != self._basis.get(name)]
        if changed:
            job, first = self._owner.job_id, changed[0]
            was, now = (str(basis.get(first))[:12] for basis in (found, self._basis))
            raise InputError(
                f"{first} is not what it was when job {job} was stopped (sha256 {was}, now {now}); "
                f"put it back, or start over with `tintray retry {job}`"
            )


def read_manifest(store: ArtifactStore, sha256: str) -> dict[str, Any]:
    """The manifest of a checkpoint; ``StorageError`` if a newer tintray has written it."""
    manifest = unseal(get_blob(store, sha256), f"checkpoint {sha256}")
    if manifest["format_version"] > FORMAT_VERSION:
        raise StorageError(
            f"checkpoint {sha256} was written in format {manifest['format_version']}; this version "
            f"of tintray reads up to {FORMAT_VERSION}; upgrade tintray"
        )
    return manifest


def delete_blobs(store: ArtifactStore, hashes: set[str]) -> None:
    """Delete the blobs of checkpoints that were dropped; gc takes those that resist."""
    for sha256 in sorted(hashes):
        try:
            store.delete(blob_key(sha256))
        except StorageError as error:
            _log.warning("blob %s of a checkpoint that was dropped is left: %s", sha256, error)
            return
