"""Measure a merge on data that was not in its job, or on its own under corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tintray.data.corruptions import Corruption
from tintray.data.source import DataSource
from tintray.errors import CheckpointError, InputError, NotFoundError
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.backend import Placement
from tintray.jobs.engine.finding import load_merge, locate, reopen_merge
from tintray.jobs.events import OnEvent, PhaseStarted, ignore
from tintray.jobs.records import Record
from tintray.jobs.runs.evaluate import (
    check_same,
    evaluating,
    given_source,
    open_published_expert,
    read_data,
    source_of,
)
from tintray.models.calling import answer_space
from tintray.models.structure import copy_on
from tintray.pools import sequences
from tintray.pools.preparing import labels_of
from tintray.published.manifest import TaskEntry
from tintray.published.merge import Merge
from tintray.published.signatures import digest
from tintray.tasks.evaluation import score
from tintray.tasks.registry import find_kind
from tintray.tinting.self_labels import predict


@dataclass(frozen=True)
class Measured(Record):
    """A task, measured on one set of examples."""

    task: str
    data: str
    corruption: str | None  # None: the examples as they are
    severity: int  # from 1 to 5; 0 as they are
    metric: str  # "agreement" where no label was read
    merged: float
    expert: float | None  # None where it is gone
    agreement: float | None  # of both, on these examples
    examples: int


@dataclass(frozen=True)
class MeasuredData(Record):
    """A merge on other data, or on its own under corruptions."""

    merge: str  # "name/v3"
    rows: Sequence[Measured]


class DataEvaluator:
    """A member that holds a published merge, and one expert at a time, on ``device``."""

    def __init__(self, url: str, manifest: str, device: str = "cpu") -> None:
        self._merge: Merge = reopen_merge(url, manifest)
        self._device = device
        self._experts: dict[str, nn.Module | InputError] = {}
        self._models: dict[str, nn.Module] = {}

    def _model(self, name: str) -> nn.Module:
        if name not in self._models:
            self._models.clear()
            self._models[name] = copy_on(self._merge.for_task(name), self._device)
        return self._models[name]

    def _expert(self, task: TaskEntry) -> nn.Module | InputError:
        if task.name not in self._experts:
            self._experts.clear()
            try:
                expert = open_published_expert(self._merge, task, self._device)[1]
            except (CheckpointError, NotFoundError) as error:
                self._experts[task.name] = error
            else:
                self._experts[task.name] = expert
        return self._experts[task.name]

    def measure(
        self, name: str, data: DataSource | None, labelled: bool, corruption: Corruption | None
    ) -> Measured:
        """Measure a task on ``data``, or on that of its job, as it is or corrupted.

        Raises DataError for data that cannot be read, or is no longer that of the job; whatever
        keeps the expert from being opened, where there is no label either.
        """
        task, module = self._merge.task(name), self._model(name)
        kind = find_kind(task.kind)
        known = task.test or task.pool
        role = f"task '{task.name}'" if data is None else f"--data {data.path}"
        labelled = task.test is not None if data is None else labelled
        source, pool = read_data(self._merge, task, data or source_of(known), role, corruption)
        if data is None and corruption is None:
            check_same(task.name, source, pool, known)
        expert = self._expert(task)
        if isinstance(expert, Exception) and not labelled:
            raise expert
        if labelled and sequences.is_open(pool):
            processor = self._merge.processor(task.name, text=True)
            pool = sequences.with_right_answers(pool, source, processor, module.config, role)
        elif isinstance(expert, nn.Module):
            pool = sequences.completed(expert, pool, self._device)
        labels = None
        if labelled:
            labels = labels_of(source, kind, pool, answer_space(module, task.classes), role)
        merged = predict(module, pool, kind, device=self._device)
        theirs = agreed = None
        if isinstance(expert, nn.Module):
            outputs = predict(expert, pool, kind, device=self._device)
            of = score(name, kind, merged, outputs, labels, pool.mask)
            metric, ours, agreed = of.metric, of.merged, of.agreement
            theirs = of.expert if labelled else None
        else:
            metric, ours = next(iter(kind.measure(merged, labels, pool.mask).items()))
        return Measured(
            task=name,
            data=f"{source.path}#{source.split}",
            corruption=corruption.name if corruption else None,
            severity=corruption.severity if corruption else 0,
            metric=metric,
            merged=ours,
            expert=theirs,
            agreement=agreed,
            examples=len(pool),
        )


def evaluate_data(
    merge: str,
    *,
    task: str | None = None,
    data: str | None = None,
    labels: bool = False,
    corrupt: str | None = None,
    store: str | None = None,
    catalog: str | None = None,
    on_event: OnEvent | None = None,
) -> MeasuredData:
    """Measure a merge, with its experts beside it, on examples that its job did not name.

    ``data`` are examples of one ``task``: a path, or one with its split, ``new.npz#test``. With
    ``labels`` the metric of merge and expert is measured, else their agreement. ``corrupt`` names
    corruptions with their severities (``"gaussian_noise:3,blur"``): of these examples, or of those
    of every task's test set, else pool.

    Raises InputError for options that do not go together, or as ``Corruption.parse``; NotFoundError
    for an unknown task; DataError for data that cannot be read.
    """
    store, catalog = chosen(store, catalog)
    told, corruptions = on_event or ignore, Corruption.parse(corrupt) if corrupt else []
    url = locate(merge, catalog)
    opened = load_merge(url)
    tasks = opened.tasks if task is None else (opened.task(task).name,)
    source = None
    if data is not None:
        if len(tasks) > 1:
            raise InputError(f"--data: expected --task, of which the examples are, of {merge}")
        known = opened.task(tasks[0])
        source = given_source(known.test or known.pool, data)
    elif labels:
        raise InputError("--labels: expected --data, whose labels are read")
    sets = [None, *corruptions]
    told(PhaseStarted("evaluating", f"{len(tasks)} tasks on {len(sets)} sets of examples each"))
    with evaluating(opened) as (backend, cluster):
        placement = Placement("evaluator", cluster.threads_per_worker, cluster.gpus_per_worker)
        member = (url, digest(opened.manifest), cluster.device)
        with backend.spread(len(tasks), placement, DataEvaluator, *member) as hosts:
            asked = [
                host.call(DataEvaluator.measure, name, source, labels, corruption)
                for host, name in zip(hosts, tasks, strict=True)
                for corruption in sets
            ]
            rows = backend.get(asked)
    return MeasuredData(opened.manifest.ref, rows)
