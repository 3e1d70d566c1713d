"""A merging method over a job's backend: tensors spread over members, gathered in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import Backend, Future, Placement
from tintray.jobs.engine.sources import cache_folder
from tintray.jobs.engine.statistics import Refs
from tintray.merging import Recipe
from tintray.merging.files.memory import MEMORY
from tintray.merging.files.streaming import Merging, Sources
from tintray.merging.files.tensor_files import TensorFiles, VectorFiles
from tintray.merging.files.writing import Progress
from tintray.numerics.layout import Layout, Slot
from tintray.storage.artifacts.blobs import BlobRef, fetch_blob
from tintray.storage.artifacts.store import open_store


@dataclass(frozen=True)
class MergerConfig:
    """What a member must know to merge any tensor; plain data.

    ``memory`` is in bytes, for each member.
    """

    store_url: str
    base: BlobRef
    tasks: tuple[str, ...]
    vectors: tuple[BlobRef, ...]
    recipe: Recipe
    scale: float | None = None
    memory: int = MEMORY
    statistics: Refs = field(default_factory=dict)


class Merger:
    """A member that merges tensors, read lazily from the artifacts' files.

    Raises
    ------
    SpecError
        If the method cannot be run as asked.
    """

    def __init__(self, config: MergerConfig) -> None:
        self._store_url = config.store_url
        sources = Sources(
            self._files(config.base, "the base"),
            [
                VectorFiles([self._path(ref)], f"the task vector of '{task}'")
                for task, ref in zip(config.tasks, config.vectors, strict=True)
            ],
            config.tasks,
            differences=True,
            statistics={
                kind: [self._files(ref, f"statistics '{kind}'") for ref in refs]
                for kind, refs in config.statistics.items()
            },
        )
        self._merging = Merging(  # there is a member for each CPU
            sources, config.recipe, scale=config.scale, memory=config.memory, at_once=1
        )

    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs: ``("",)``, or the tasks'."""
        return self._merging.outputs

    def totals(self, names: Sequence[str]) -> Floats | None:
        """What the method sums over these tensors, [K, m]."""
        found = self._merging.totals(names)
        return None if found is None else found.numpy()

    def use(self, totals: Floats | None) -> None:
        """Merge with these totals, of the whole model."""
        if totals is not None:
            self._merging.use_totals(torch.from_numpy(totals.copy()))

    def merge(self, name: str) -> Floats:
        """One merged tensor, flat: [outputs, n]."""
        found: Floats = self._merging.tensor(name).flatten(1).numpy()
        return found

    def _files(self, ref: BlobRef, role: str) -> TensorFiles:
        return TensorFiles([self._path(ref)], role)

    def _path(self, ref: BlobRef) -> Path:
        return fetch_blob(open_store(self._store_url), ref, cache_folder())


def merged_backbones(
    backend: Backend,
    config: MergerConfig,
    layout: Layout,
    progress: Progress | None = None,
    *,
    most: int | None = None,
) -> dict[str, Floats]:
    """θ [P] by output: one under ``""``, or one for each task.

    Each member merges one tensor at a time; finished ones wait their turn in a window as wide as
    there are members: one per CPU, or ``most``.
    """
    width = min(most or backend.size(), len(layout.slots))
    with backend.spread(width, Placement("merger"), Merger, config) as members:
        outputs = members[0].call(Merger.outputs).result()
        names = [slot.name for slot in layout.slots]
        parts = [m.call(Merger.totals, names[n::width]) for n, m in enumerate(members)]
        known = [part for part in backend.get(parts) if part is not None]
        total = np.sum(known, axis=0) if known else None
        backend.get([member.call(Merger.use, total) for member in members])
        merged = np.empty((len(outputs), layout.numel), dtype=np.float32)
        window: deque[Future[Floats]] = deque()

        def collect(slot: Slot) -> None:
            merged[:, slot.start : slot.stop] = window.popleft().result()
            if progress is not None:
                progress(slot.stop, layout.numel)

        for index, slot in enumerate(layout.slots):
            if index >= width:
                collect(layout.slots[index - width])
            window.append(members[index % width].call(Merger.merge, slot.name))
        for slot in layout.slots[-width:]:
            collect(slot)
    return dict(zip(outputs, merged, strict=True))
