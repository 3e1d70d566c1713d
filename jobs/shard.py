"""A shard: it holds task vectors, merges them into a backbone, and projects gradients onto them.

Only shards hold task vectors. A worker sees the merged θ and returns a gradient; the K·P numbers
of T never leave this object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from jobs.arrays import Floats, peak_memory, readable
from jobs.sources import cache_folder
from storage.artifacts import open_store
from storage.blobs import BlobRef, fetch_blob
from tintray.bundle import read_tensors
from tintray.layout import Layout
from tintray.merging import Recipe
from tintray.merging.apply import direct
from tintray.merging.tensor_files import StackedTensors, TensorFiles
from tintray.task_vectors import TaskVectors


class Shard:
    """T and θ₀ over one layout.

    Parameters
    ----------
    store_url
        Where the base's tensors and the task vectors lie as blobs.
    base
        The base's backbone tensors.
    """

    def __init__(self, store_url: str, layout: Layout, base: BlobRef) -> None:
        self._store = open_store(store_url)
        self._layout = layout
        self._base = base
        self._vectors: TaskVectors | None = None

    def load(self, tasks: Sequence[str], vectors: Sequence[BlobRef]) -> None:
        """Read θ₀ and one row of T per task, in order, each checked against its hash."""
        matrix = torch.empty(len(tasks), self._layout.numel)
        for row, ref in zip(matrix, vectors, strict=True):
            row.copy_(self._flat(ref))
        self._vectors = TaskVectors(self._layout, tuple(tasks), self._flat(self._base), matrix)

    def direct(self, recipe: Recipe, statistics: Mapping[str, Sequence[BlobRef]]) -> None:
        """Put a merging method's directions in the place of the task vectors."""
        with ExitStack() as stack:
            stacked = {
                kind: StackedTensors(
                    [
                        stack.enter_context(TensorFiles([self._path(ref)], f"statistics '{kind}'"))
                        for ref in refs
                    ]
                )
                for kind, refs in statistics.items()
            }
            self._vectors = direct(self._loaded, recipe, stacked)

    def merge(self, coefficients: Floats) -> Floats:
        """θ [P] for Λ [K, L]."""
        merged: Floats = self._loaded.merge(torch.from_numpy(coefficients.copy())).numpy()
        return merged

    def project(self, *gradients: Floats) -> Floats:
        """∂L/∂Λ [K, L] of the groups' gradients [P], summed in the order given."""
        total = torch.from_numpy(gradients[0].copy())
        for gradient in gradients[1:]:
            total += readable(gradient)
        projected: Floats = self._loaded.project(total).numpy()
        return projected

    def peak_memory(self) -> int:
        """The most memory that this process has held, in bytes."""
        return peak_memory()

    @property
    def _loaded(self) -> TaskVectors:
        assert self._vectors is not None, "load() comes first"
        return self._vectors

    def _flat(self, ref: BlobRef) -> torch.Tensor:
        names = [slot.name for slot in self._layout.slots]
        return self._layout.flatten(read_tensors(self._path(ref), names))

    def _path(self, ref: BlobRef) -> Path:
        return fetch_blob(self._store, ref, cache_folder())
