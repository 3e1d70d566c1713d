"""Measure a published merge again: load it as a user would, run every task through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder, zero_shot_of
from tintray.checkpoints.tensors import read_tensors
from tintray.data.corruptions import Corruption
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.jobs.config.cluster_sections import ClusterSpec
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import limits
from tintray.jobs.engine.backend import ActorHandle, Backend, Placement, open_backend
from tintray.jobs.engine.finding import reopen_merge
from tintray.jobs.engine.sources import cache_folder, local_data, local_folder
from tintray.jobs.events import OnEvent, PhaseStarted
from tintray.jobs.results import EvalTable
from tintray.jobs.runs.job_run import evaluated
from tintray.jobs.runs.pipeline import on_gpus_there
from tintray.jobs.runs.routing import Routed, foreign_source, route_answered, routing_table
from tintray.jobs.runs.summaries import evaluation
from tintray.models.calling import answer_space
from tintray.models.loading import load_expert
from tintray.models.structure import copy_on
from tintray.pools import sequences
from tintray.pools.pool import Pool
from tintray.pools.preparing import labels_of, prepared_pool
from tintray.published.manifest import DataEntry, PoolEntry, TaskEntry, TestEntry
from tintray.published.merge import Merge
from tintray.published.signatures import digest
from tintray.storage.artifacts.blobs import blob_key, fetch_blob
from tintray.storage.artifacts.store import open_store
from tintray.tasks.evaluation import TaskScore, calibrated_score, score
from tintray.tasks.kind import Kind
from tintray.tasks.metrics import find_metric
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
    """A member that holds one published merge and measures tasks of it, on ``device``.

    ``manifest`` is the ``digest`` of the merge as it was opened.
    """

    def __init__(self, url: str, manifest: str, store_url: str, device: str = "cpu") -> None:
        self._merge = reopen_merge(url, manifest)
        self._store = open_store(store_url)
        self._device = device

    def evaluate(self, name: str) -> TaskScore:
        """Measure one task: on its labelled test set, else by agreement on its pool.

        Raises DataError if the data file is gone, or holds other examples than when the merge was
        published.
        """
        kind, *answers = self.answers(name)
        return calibrated_score(name, kind, *answers)

    def evaluate_routed(self, name: str) -> tuple[TaskScore, Routed]:
        """The same, and where the examples go when nobody says which task they are of."""
        asked = self.answers(name)
        kind, *answers = asked
        given = calibrated_score(name, kind, *answers)
        _, pool = self._pool(self._merge.task(name), kind, self._merge.for_task(name))
        taken = route_answered(self._merge, pool, self._device, {name: asked.merged})
        rows, found = [n for n, task in enumerate(taken.tasks) if task == name], 0.0
        if rows:
            found = score(name, kind, *(_chosen(of, rows) for of in answers)).merged
        metric = find_metric(given.metric)
        if metric.unit == "share" and not metric.lower:
            found *= len(rows) / len(pool)
        return given, replace(taken, found=found)

    def route(self, data: DataSource) -> Routed:
        """Where examples go that are of none of the tasks; raises DataError as pools do."""
        first = self._merge.tasks[0]
        kind = find_kind(self._merge.task(first).kind)
        processor = cache(lambda text: self._merge.processor(first, text=text))
        source = local_data(data, cache_folder())
        pool = prepared_pool(source, processor, kind, f"--foreign {data.path}", cache_folder())
        return route_answered(self._merge, pool, self._device)

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
        merged = predict(copy_on(module, self._device), pool, kind, device=self._device)
        return TaskAnswers(kind, merged, expert, labels, pool.mask)

    def _pool(self, task: TaskEntry, kind: Kind, module: Any) -> tuple[DataSource, Pool]:
        """The examples, and where they were read; ``module`` tells how right answers are read."""
        source, pool = read_pool(self._merge, task, task.test or task.pool)
        where = f"task '{task.name}'"
        if task.test is not None and sequences.is_open(pool):
            processor = self._merge.processor(task.name, text=True)
            pool = sequences.with_right_answers(pool, source, processor, module.config, where)
        check_same(task.name, source, pool, task.test or task.pool)
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
        device = self._device
        expert = open_published_expert(self._merge, task, device)[1]
        pool = sequences.completed(expert, pool, device)
        return pool, predict(expert, pool, kind, device=device)


def open_published_expert(
    merge: Merge, task: TaskEntry, device: str = "cpu"
) -> tuple[ModelFolder, nn.Module]:
    """The expert of a task of a merge on ``device``, from where the job had it.

    Raises CheckpointError if it is gone.
    """
    role, factory = f"the expert of task '{task.name}'", merge.factory
    sources = (merge.manifest.base.source, task.expert.source)
    base, folder = (local_folder(source, cache_folder()) for source in sources)
    whole = open_model_folder(base, role="the base", factory=factory)
    model = open_model_folder(folder, role=role, base=whole, factory=factory)
    if model.is_tower and not model.has_head:
        model = model.with_classes(zero_shot_of(merge.config(task.name)))
    return model, copy_on(load_expert(model, role, device=device, as_stored=True), device)


def read_pool(
    merge: Merge, task: TaskEntry, known: PoolEntry | TestEntry
) -> tuple[DataSource, Pool]:
    """A task's pool or test set, prepared as its expert does, and where it was read."""
    return read_data(merge, task, source_of(known), f"task '{task.name}'")


def source_of(known: DataEntry, **changed: Any) -> DataSource:
    """Where a task's examples are read, or others like them, with some fields changed."""
    fields = {name: getattr(known, name) for name in DataEntry.model_fields}
    return DataSource(**fields | changed, limits=limits())


def given_source(known: DataEntry, text: str, sample: int | None = None) -> DataSource:
    """Examples that an option names, read as others of the task are; ``sample`` of them, if set."""
    given = foreign_source(text)
    return source_of(known, path=given.path, split=given.split, sample=sample)


def read_data(
    merge: Merge,
    task: TaskEntry,
    source: DataSource,
    role: str,
    corruption: Corruption | None = None,
) -> tuple[DataSource, Pool]:
    """Any examples, prepared as the expert of a task does, and where they were read."""
    source, kind = local_data(source, cache_folder()), find_kind(task.kind)
    processor = cache(lambda text: merge.processor(task.name, text=text))
    return source, prepared_pool(source, processor, kind, role, cache_folder(), corruption)


def check_same(task: str, source: DataSource, pool: Pool, known: PoolEntry | TestEntry) -> None:
    """Raise DataError for other examples than those that the merge was published with."""
    if pool.digest != known.sha256:
        raise DataError(
            f"task '{task}': split '{known.split}' of {source.path} is not what the merge was "
            "published with; expected the same examples, restore the file or run the job again"
        )


def _chosen(values: Any, rows: list[int]) -> Any:
    """Some examples of outputs, labels or masks, which may be None."""
    if values is None or isinstance(values, list):
        return values and [values[row] for row in rows]
    return values[torch.tensor(rows)]


def evaluate(
    merge: Merge,
    store_url: str,
    on_event: OnEvent,
    *,
    route: bool = False,
    foreign: Sequence[str] = (),
) -> EvalTable:
    """Measure a merge again, on the data of its job and its job's kind of cluster.

    With ``route`` also what becomes of its examples when nobody names their task; ``foreign`` are
    data sets of none of its tasks, each a path, or a path and its split: ``signs.npz#test``.

    Raises what ``open_router`` does, before anything is measured.
    """
    if routed := route or bool(foreign):
        _ = merge.router
    on_event(PhaseStarted("evaluating", f"{len(merge.tasks)} tasks on the data of the job"))
    with evaluating(merge) as (backend, cluster):
        if not routed:
            scores = measure(backend, merge, store_url, cluster, on_event)
            return evaluation(merge.manifest, scores)
        with _evaluators(backend, merge, store_url, cluster) as hosts:
            strangers = [hosts[0].call(Evaluator.route, foreign_source(text)) for text in foreign]
            others = dict(zip(foreign, backend.get(strangers), strict=True))
            named = zip(hosts, merge.tasks, strict=True)
            measured = [host.call(Evaluator.evaluate_routed, name) for host, name in named]
            pairs = backend.get(measured)
    for given, _ in pairs:
        on_event(evaluated(given))
    table = evaluation(merge.manifest, [given for given, _ in pairs])
    return replace(table, routing=routing_table(merge, pairs, others))


def job_of(merge: Merge) -> JobSpec:
    """The job that a merge was published by."""
    return JobSpec.from_record(merge.manifest.job.to_json())


@contextmanager
def evaluating(merge: Merge) -> Iterator[tuple[Backend, ClusterSpec]]:
    """Where a merge is measured again: its job's kind of cluster."""
    cluster = on_gpus_there(job_of(merge).on_own_cluster()).cluster
    opened = open_backend(
        address=cluster.address,
        workers=cluster.workers,
        threads=cluster.threads_per_worker,
        plan=256 * 2**20,
        gpus=cluster.gpus_per_worker,
    )
    with closing(opened) as backend:
        yield backend, cluster


def _evaluators(
    backend: Backend, merge: Merge, store_url: str, cluster: ClusterSpec
) -> AbstractContextManager[list[ActorHandle[Evaluator]]]:
    """One for each task, spread over the backend, computing as the cluster's workers do."""
    placement = Placement("evaluator", cluster.threads_per_worker, cluster.gpus_per_worker)
    members = (merge.url, digest(merge.manifest), store_url, cluster.device)
    return backend.spread(len(merge.tasks), placement, Evaluator, *members)


def measure(
    backend: Backend, merge: Merge, store_url: str, cluster: ClusterSpec, on_event: OnEvent
) -> list[TaskScore]:
    """Measure every task of a merge, in the order of its tasks."""
    scores: dict[int, TaskScore] = {}
    with _evaluators(backend, merge, store_url, cluster) as members:
        named = zip(members, merge.tasks, strict=True)
        asked = [member.call(Evaluator.evaluate, name) for member, name in named]
        for index, score in backend.as_completed(asked):
            on_event(evaluated(score))
            scores[index] = score
    return [scores[index] for index in range(len(scores))]
