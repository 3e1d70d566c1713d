"""Statistics of experts and task vectors as artifacts: measured once, found again by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from tintray.checkpoints.tensors import read_tensors, tensors_as_bytes
from tintray.jobs.engine.backend import ON_CPUS, Backend, Future, Where
from tintray.jobs.engine.configs import Prepared, TaskConfig, TaskFacts
from tintray.jobs.engine.sources import cache_folder
from tintray.jobs.engine.task_files import TaskFiles
from tintray.merging import statistics
from tintray.models.loading import load_expert
from tintray.models.structure import backbone_names, copy_on
from tintray.pools import sequences
from tintray.storage.artifacts.blobs import BlobRef, fetch_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.store import open_store

_VERSION = 1  # of what is measured and how; another number, another key

Refs = Mapping[str, tuple[BlobRef, ...]]
"""Kind to artifacts: one per task in order, or one for all of them (``svd_sum``)."""


_CALLED = {
    "fisher": "Fisher diagonals",
    "gram": "Gram matrices",
    "svd": "decompositions of task vectors",
    "svd_sum": "the decomposition of the task vectors' sum",
}

Measured = tuple[BlobRef, bool]
"""One statistic: its artifact, and whether the store had it already."""


class Measurer:
    """A member that measures, on ``device``; it keeps nothing."""

    def __init__(self, store_url: str, device: str = "cpu") -> None:
        self._store, self._device = open_store(store_url), device

    def of_expert(self, kind: str, task: TaskConfig, facts: TaskFacts) -> Measured:
        """``fisher`` or ``gram`` of an expert on its pool."""

        def measure() -> Mapping[str, Tensor]:
            files = TaskFiles.open(task)
            expert = load_expert(files.folder, task.role, device=self._device, as_stored=True)
            expert = copy_on(expert, self._device)
            pool = sequences.completed(expert, files.pool(), self._device)
            rule = statistics.fisher_diagonal if kind == "fisher" else statistics.input_grams
            return rule(expert, pool, backbone_names(expert), self._device)

        return self._known(kind, [facts.expert_digest, facts.pool_digest], measure)

    def of_vectors(self, kind: str, vectors: Sequence[BlobRef]) -> Measured:
        """Decompositions of a task vector, or of the sum of several."""

        def measure() -> Mapping[str, Tensor]:
            read = [read_tensors(fetch_blob(self._store, ref, cache_folder())) for ref in vectors]
            return statistics.decompositions(read, self._device)

        return self._known(kind, sorted(ref.sha256 for ref in vectors), measure)

    def _known(
        self, kind: str, digests: Sequence[str], measure: Callable[[], Mapping[str, Tensor]]
    ) -> Measured:
        where = [self._device] if self._device != "cpu" else []
        of = (kind, str(_VERSION), *digests, *where)
        key = hashlib.sha256(" ".join(of).encode()).hexdigest()
        found = lookup(self._store, kind, key)
        if found is not None:
            return found, True
        return remember(self._store, kind, key, tensors_as_bytes(measure())), False


def measure_statistics(
    backend: Backend,
    store_url: str,
    kinds: Iterable[str],
    tasks: Sequence[TaskConfig],
    facts: Mapping[str, TaskFacts],
    prepared: Mapping[str, Prepared],
    notify: Callable[[str], object],
    where: Where = ON_CPUS,
) -> Refs:
    """Have the statistics of these kinds for every task, measured by members or remembered.

    ``notify`` is given a sentence for each kind: what was measured, and what the store had.
    """
    wanted = list(dict.fromkeys(kinds))
    if not wanted:
        return {}
    vectors = [prepared[task.name].vector for task in tasks]
    calls: dict[str, list[Future[Measured]]] = {}
    placement, known = where.placement("measurer"), (store_url, where.device)
    with backend.spread(len(tasks), placement, Measurer, *known) as members:
        for kind in wanted:
            if kind == "svd_sum":
                calls[kind] = [members[0].call(Measurer.of_vectors, kind, vectors)]
                continue
            calls[kind] = [
                member.call(Measurer.of_expert, kind, task, facts[task.name])
                if kind in statistics.OF_EXPERTS
                else member.call(Measurer.of_vectors, kind, [vector])
                for member, task, vector in zip(members, tasks, vectors, strict=True)
            ]
        found = {kind: backend.get(each) for kind, each in calls.items()}
    for kind, measured in found.items():
        cached, count = sum(had for _, had in measured), len(measured)
        of = "" if count == 1 else f" of {cached or count} of {count} tasks"
        verb = "was" if kind == "svd_sum" else "were"
        done = "reused from the store" if cached else "measured"
        notify(f"{_CALLED.get(kind, kind)}{of} {verb} {done}")
    return {kind: tuple(ref for ref, _ in measured) for kind, measured in found.items()}
