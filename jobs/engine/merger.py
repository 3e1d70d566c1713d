"""A merging method over a job's backend: tensors spread over members, gathered in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import torch

from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import ON_CPUS, Backend, Future, Where
from tintray.jobs.engine.sources import cache_folder
from tintray.jobs.engine.statistics import Refs
from tintray.merging import Recipe
from tintray.merging.files.streaming import Merging, Sources
from tintray.merging.files.tensor_files import TensorFiles, VectorFiles
from tintray.merging.files.writing import Progress
from tintray.numerics.layout import Layout, Slot
from tintray.storage.artifacts.blobs import BlobRef, fetch_blob
from tintray.storage.artifacts.store import open_store


@dataclass(frozen=True)
class MergerConfig:
    """What a member must know to merge any tensor; plain data.

    ``memory`` is in bytes, for each member; ``device`` is where its method computes.
    """

    store_url: str
    base: BlobRef
    tasks: tuple[str, ...]
    vectors: tuple[BlobRef, ...]
    recipe: Recipe
    scale: float | None
    memory: int
    statistics: Refs
    device: str = "cpu"


class Merger:
    """A member that merges tensors, read lazily from the artifacts' files.

    Raises
    ------
    SpecError
        If the method cannot be run as asked.
    """

    def __init__(self, config: MergerConfig) -> None:
        store = open_store(config.store_url)

        def files(ref: BlobRef, role: str, kind: type[TensorFiles] = TensorFiles) -> TensorFiles:
            return kind([fetch_blob(store, ref, cache_folder())], role)

        vectors = zip(config.tasks, config.vectors, strict=True)
        sources = Sources(
            files(config.base, "the base"),
            [files(ref, f"the task vector of '{task}'", VectorFiles) for task, ref in vectors],
            config.tasks,
            differences=True,
            statistics={
                kind: [files(ref, f"statistics '{kind}'") for ref in refs]
                for kind, refs in config.statistics.items()
            },
        )
        self._merging = Merging(
            *(sources, config.recipe),
            scale=config.scale,
            memory=config.memory,
            at_once=1,  # there is a member for each CPU, or GPU
            device=config.device,
        )

    def totals(self, names: Sequence[str]) -> Floats | None:
        """What the method sums over these tensors, [K, m]."""
        found = self._merging.totals(names)
        return None if found is None else found.numpy()

    def merge(self, name: str, totals: Floats | None) -> Floats:
        """One merged tensor, flat: [outputs, n]; ``totals`` are of the whole model."""
        known = None if totals is None else torch.from_numpy(totals.copy())
        found: Floats = self._merging.tensor(name, known).flatten(1).numpy()
        return found


def merged_backbones(
    backend: Backend,
    config: MergerConfig,
    layout: Layout,
    progress: Progress,
    *,
    most: int | None = None,
    where: Where = ON_CPUS,
) -> dict[str, Floats]:
    """θ [P] by output: one under ``""``, or one for each task.

    Each member merges one tensor at a time; finished ones wait their turn in a window as wide as
    there are members: one per CPU, or GPU, or ``most``.
    """
    names = [slot.name for slot in layout.slots]
    width = min(most or len(where.hosts) or backend.size(), len(names))
    outputs = config.tasks if config.recipe.method.own is not None else ("",)
    merged = np.empty((len(outputs), layout.numel), dtype=np.float32)
    window: deque[tuple[Slot, Future[Floats]]] = deque()

    def collect() -> None:
        slot, found = window.popleft()
        merged[:, slot.start : slot.stop] = found.result()
        progress(slot.stop, layout.numel)

    config = replace(config, device=where.device)
    with backend.spread(width, where.placement("merger"), Merger, config) as members:
        parts = [m.call(Merger.totals, names[n::width]) for n, m in enumerate(members)]
        known = [part for part in backend.get(parts) if part is not None]
        totals = np.sum(known, axis=0) if known else None
        for slot, member in zip(layout.slots, cycle(members), strict=False):
            if len(window) == width:
                collect()
            window.append((slot, member.call(Merger.merge, slot.name, totals)))
        while window:
            collect()
    return dict(zip(outputs, merged, strict=True))
