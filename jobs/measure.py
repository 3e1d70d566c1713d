"""Measure a published merge again: load it as a user would, run every task through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from jobs.fleet import Fleet
from jobs.merges import load_merge
from jobs.sources import cache_folder, local_file, local_folder
from storage.artifacts import ArtifactStore, open_store
from storage.blobs import blob_key, fetch_blob
from tintray import models, pools
from tintray.bundle import Merge, read_tensors
from tintray.checkpoints import open_checkpoint
from tintray.errors import DataError
from tintray.evaluation import TaskScore, score
from tintray.labels import predict


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
        labelled = task["test"] is not None
        source = task["test"] if labelled else task["pool"]
        pool = self._pool(name, source)
        merged = predict(self._merge.for_task(name), pool)
        expert = _expert_outputs(
            self._store, task, source["outputs" if labelled else "labels"], pool
        )
        labels = None
        if labelled:
            labels = pools.read_labels(
                local_file(source["path"], cache_folder()),
                source["split"],
                f"task '{name}'",
                examples=len(pool),
                classes=task["classes"],
            )
        return score(name, task["kind"], merged, expert, labels)

    def _pool(self, name: str, source: Mapping[str, Any]) -> pools.Pool:
        path = local_file(source["path"], cache_folder())
        raw = pools.read_images(path, source["split"], f"task '{name}'")
        pool = pools.build_pool(raw, self._merge.processor(name))
        if pool.digest != source["sha256"]:
            raise DataError(
                f"task '{name}': split '{source['split']}' of {path} is not what the merge was "
                "published with; expected the same examples, restore the file or run the job again"
            )
        return pool


def _expert_outputs(
    store: ArtifactStore, task: Mapping[str, Any], sha256: str, pool: pools.Pool
) -> Tensor:
    """The expert's logits over the pool: from the store, or by the expert where they are gone."""
    if store.exists(blob_key(sha256)):
        return read_tensors(fetch_blob(store, sha256, cache_folder()))["logits"]
    role = f"the expert of task '{task['name']}'"
    folder = local_folder(task["expert"]["source"], cache_folder())
    return predict(models.load_expert(open_checkpoint(folder, role=role), role), pool)


def measure(
    fleet: Fleet,
    merge: Merge,
    store_url: str,
    threads: int,
    on_score: Callable[[TaskScore], None],
) -> list[TaskScore]:
    """Measure every task of a merge, spread over the fleet, in the order of its tasks."""
    members = [
        fleet.spawn(Evaluator, merge.url, store_url, threads=threads, name=f"evaluator {n + 1}")
        for n in range(min(max(1, fleet.size() // threads), len(merge.tasks)))
    ]
    refs = [
        members[index % len(members)].call("evaluate", name)
        for index, name in enumerate(merge.tasks)
    ]
    found: dict[int, TaskScore] = {}
    for index, result in fleet.as_completed(refs):
        on_score(result)
        found[index] = result
    return [found[index] for index in range(len(refs))]
