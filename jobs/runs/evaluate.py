"""Measure a published merge again: load it as a user would, run every task through it."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from typing import Any, NamedTuple

from tintray.checkpoints.model_folder import open_model_folder, zero_shot_of
from tintray.checkpoints.tensors import read_tensors
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import limits
from tintray.jobs.engine.backend import Backend, Placement, open_backend
from tintray.jobs.engine.finding import load_merge
from tintray.jobs.engine.sources import cache_folder, local_data, local_folder
from tintray.jobs.events import OnEvent, PhaseStarted
from tintray.jobs.results import EvalTable
from tintray.jobs.runs.job_run import evaluated
from tintray.jobs.runs.summaries import evaluation
from tintray.models.calling import answer_space
from tintray.models.loading import load_expert
from tintray.pools import sequences
from tintray.pools.pool import Pool
from tintray.pools.preparing import labels_of, prepared_pool
from tintray.published.manifest import DataEntry, TaskEntry
from tintray.published.merge import Merge
from tintray.storage.artifacts.blobs import blob_key, fetch_blob
from tintray.storage.artifacts.store import open_store
from tintray.tasks.evaluation import TaskScore, calibrated_score
from tintray.tasks.kind import Kind
from tintray.tasks.outputs import Mask, Outputs, from_tensors
from tintray.tasks.registry import find_kind
from tintray.tinting.self_labels import predict


class TaskAnswers(NamedTuple):
    """One task on the examples it is measured on: of merge and expert, and what is right."""

    kind: Kind
    merged: Outputs
    expert: Outputs
    labels: Any
    mask: Mask


class Evaluator:
    """A member that holds one published merge and measures tasks of it."""

    def __init__(self, url: str, store_url: str) -> None:
        self._merge = load_merge(url)
        self._store = open_store(store_url)

    def evaluate(self, name: str) -> TaskScore:
        """Measure one task: on its labelled test set, else by agreement on its pool.

        Raises DataError if the data file is gone, or holds other examples than when the merge was
        published.
        """
        kind, *answers = self.answers(name)
        return calibrated_score(name, kind, *answers)

    def answers(self, name: str) -> TaskAnswers:
        """What merge and expert answer where ``evaluate`` compares them; raises as it does."""
        task, kind = self._merge.task(name), find_kind(self._merge.task(name).kind)
        module = self._merge.for_task(name)
        source, pool = self._pool(task, kind, module)
        pool, expert = self._expert_outputs(task, kind, pool, getattr(module, "config", None))
        labels = None
        if task.test is not None:
            space = answer_space(module, task.classes)
            labels = labels_of(source, kind, pool, space, f"task '{name}'")
        return TaskAnswers(kind, predict(module, pool, kind), expert, labels, pool.mask)

    def _pool(self, task: TaskEntry, kind: Kind, module: Any) -> tuple[DataSource, Pool]:
        """The examples, and where they were read; ``module`` tells how right answers are read."""
        known, where = task.test or task.pool, f"task '{task.name}'"
        fields = {name: getattr(known, name) for name in DataEntry.model_fields}
        source = local_data(DataSource(**fields, limits=limits()), cache_folder())
        processor = cache(lambda text: self._merge.processor(task.name, text=text))
        pool = prepared_pool(source, processor, kind, where, cache_folder())
        if task.test is not None and sequences.is_open(pool):
            pool = sequences.with_right_answers(pool, source, processor(True), module.config, where)
        if pool.digest != known.sha256:
            raise DataError(
                f"task '{task.name}': split '{known.split}' of {source.path} is not what the merge "
                "was published with; expected the same examples, restore the file or run the job "
                "again"
            )
        return source, pool

    def _expert_outputs(
        self, task: TaskEntry, kind: Kind, pool: Pool, config: Any
    ) -> tuple[Pool, Outputs]:
        """The pool with what its decoder reads, if it has one, and the expert's answers over it.

        They come from the store, or from the expert where they are gone.
        """
        sha256 = task.pool.labels if task.test is None else task.test.outputs
        if sha256 is not None and self._store.exists(blob_key(sha256)):
            outputs = read_tensors(fetch_blob(self._store, sha256, cache_folder()))
            return sequences.recalled(pool, outputs, config), from_tensors(outputs)
        role, factory = f"the expert of task '{task.name}'", self._merge.factory
        sources = (self._merge.manifest.base.source, task.expert.source)
        base, folder = (local_folder(source, cache_folder()) for source in sources)
        whole = open_model_folder(base, role="the base", factory=factory)
        model = open_model_folder(folder, role=role, base=whole, factory=factory)
        if model.is_tower and not model.has_head:
            model = model.with_classes(zero_shot_of(self._merge.config(task.name)))
        expert = load_expert(model, role)
        pool = sequences.completed(expert, pool)
        return pool, predict(expert, pool, kind)


def evaluate(merge: Merge, store_url: str, on_event: OnEvent) -> EvalTable:
    """Measure a merge again, on the data of its job and its job's kind of cluster."""
    spec = JobSpec.from_record(merge.manifest.job.to_json())
    cluster = spec.on_own_cluster().cluster
    threads = cluster.threads_per_worker
    opened = open_backend(
        address=cluster.address, workers=cluster.workers, threads=threads, plan=256 * 2**20
    )
    on_event(PhaseStarted("evaluating", f"{len(merge.tasks)} tasks on the data of the job"))
    with closing(opened) as backend:
        scores = measure(backend, merge, store_url, threads, on_event)
    return evaluation(merge.manifest, scores)


def measure(
    backend: Backend, merge: Merge, store_url: str, threads: int, on_event: OnEvent
) -> list[TaskScore]:
    """Measure every task of a merge, spread over the backend, in the order of its tasks."""
    placement = Placement("evaluator", threads)
    scores: dict[int, TaskScore] = {}
    with backend.spread(len(merge.tasks), placement, Evaluator, merge.url, store_url) as members:
        named = zip(members, merge.tasks, strict=True)
        asked = [member.call(Evaluator.evaluate, name) for member, name in named]
        for index, score in backend.as_completed(asked):
            on_event(evaluated(score))
            scores[index] = score
    return [scores[index] for index in range(len(scores))]
