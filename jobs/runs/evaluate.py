"""Measure a published merge again: load it as a user would, run every task through it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tintray.checkpoints.model_folder import open_model_folder, zero_shot_of
from tintray.checkpoints.tensors import read_tensors
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.jobs.config.settings import limits
from tintray.jobs.engine.backend import Backend, Placement
from tintray.jobs.engine.finding import load_merge
from tintray.jobs.engine.sources import cache_folder, local_data, local_folder
from tintray.models.calling import answer_space
from tintray.models.loading import load_expert
from tintray.pools import sequences
from tintray.pools.pool import Pool
from tintray.pools.preparing import labels_of, prepared_pool
from tintray.published.manifest import DataEntry, PoolEntry, TaskEntry, TestEntry
from tintray.published.merge import Merge
from tintray.storage.artifacts.blobs import blob_key, fetch_blob
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.store import open_store
from tintray.tasks.evaluation import TaskScore, calibrated_score
from tintray.tasks.kind import Kind
from tintray.tasks.outputs import Outputs, from_tensors
from tintray.tasks.registry import find_kind
from tintray.tinting.self_labels import predict


class Evaluator:
    """A member that holds one published merge and measures tasks of it."""

    def __init__(self, url: str, store_url: str) -> None:
        self._merge = load_merge(url)
        self._store = open_store(store_url)

    def evaluate(self, name: str) -> TaskScore:
        """Measure one task: on its labelled test set, else by agreement on its pool.

        Raises
        ------
        DataError
            If the data file is gone, or holds other examples than when the merge was published.
        """
        task = self._merge.task(name)
        labelled = task.test is not None
        source = task.test or task.pool
        module = self._merge.for_task(name)
        kind = find_kind(task.kind)
        order, pool = self._pool(name, kind, source, module if labelled else None)
        digest = task.pool.labels if task.test is None else task.test.outputs
        config = getattr(module, "config", None)
        pool, expert = _expert_outputs(self._store, self._merge, task, digest, pool, config)
        merged = predict(module, pool, kind)
        labels = None
        if labelled:
            answers = answer_space(module, task.classes)
            labels = labels_of(order, kind, pool, answers, f"task '{name}'")
        return calibrated_score(name, kind, merged, expert, labels, pool.mask)

    def _pool(
        self, name: str, kind: Kind, source: PoolEntry | TestEntry, reader: Any
    ) -> tuple[DataSource, Pool]:
        """The examples and where they were read; ``reader`` is a model to read right answers."""
        fields = {name: getattr(source, name) for name in DataEntry.model_fields}
        order = local_data(DataSource(**fields, limits=limits()), cache_folder())
        where = f"task '{name}'"
        processor = cache(lambda text: self._merge.processor(name, text=text))
        pool = prepared_pool(order, processor, kind, where, cache_folder())
        if reader is not None and sequences.is_open(pool):
            pool = sequences.with_right_answers(pool, order, processor(True), reader.config, where)
        if pool.digest != source.sha256:
            raise DataError(
                f"task '{name}': split '{source.split}' of {order.path} is not what the merge "
                "was published with; expected the same examples, restore the file or run the job "
                "again"
            )
        return order, pool


def _expert_outputs(
    store: ArtifactStore,
    merge: Merge,
    task: TaskEntry,
    sha256: str | None,
    pool: Pool,
    config: Any,
) -> tuple[Pool, Outputs]:
    """The pool with what its decoder reads, if it has one, and the expert's answers over it.

    They come from the store, or from the expert where they are gone.
    """
    if sha256 is not None and store.exists(blob_key(sha256)):
        kept = read_tensors(fetch_blob(store, sha256, cache_folder()))
        return sequences.recalled(pool, kept, config), from_tensors(kept)
    role = f"the expert of task '{task.name}'"
    folders = (merge.manifest.base.source, task.expert.source)
    base, folder = (local_folder(source, cache_folder()) for source in folders)
    built = merge.factory
    whole = open_model_folder(base, role="the base", factory=built)
    checkpoint = open_model_folder(folder, role=role, base=whole, factory=built)
    if checkpoint.is_tower and not checkpoint.has_head:
        checkpoint = checkpoint.with_classes(zero_shot_of(merge.config(task.name)))
    expert = load_expert(checkpoint, role)
    pool = sequences.completed(expert, pool)
    return pool, predict(expert, pool, find_kind(task.kind))


def measure(
    fleet: Backend,
    merge: Merge,
    store_url: str,
    threads: int,
    on_score: Callable[[TaskScore], None],
) -> list[TaskScore]:
    """Measure every task of a merge, spread over the fleet, in the order of its tasks."""
    placement = Placement("evaluator", threads)
    found: dict[int, TaskScore] = {}
    with fleet.spread(len(merge.tasks), placement, Evaluator, merge.url, store_url) as members:
        named = zip(members, merge.tasks, strict=True)
        scores = [member.call(Evaluator.evaluate, name) for member, name in named]
        for index, result in fleet.as_completed(scores):
            on_score(result)
            found[index] = result
    return [found[index] for index in range(len(scores))]
