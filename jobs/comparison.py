"""A merge beside what a user would compare it with, on the same data.

The rivals are the individual experts, the weight average, and task arithmetic (arXiv 2212.04089)
at its best scale. They share whole backbones and keep each expert's own head. The scale is chosen
by agreement with the experts on the adaptation pools, where no label is read; test data is used
once, for the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.arrays import Floats
from jobs.crew import Crew, survey
from jobs.driver import evaluated, fleet_for
from jobs.events import OnEvent, StageStarted
from jobs.fleet import Fleet
from jobs.measure import measure
from jobs.results import CompareRow, CompareTable
from jobs.spec import JobSpec
from storage.artifacts import open_store
from tintray.bundle import Merge
from tintray.evaluation import TaskScore, mean, normalised_accuracy

SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
_EXAMPLES = 128  # pool examples per task on which scales are compared


def compare(merge: Merge, store_url: str, on_event: OnEvent) -> CompareTable:
    """Measure a merge, its experts and the plain merges of their task vectors.

    Raises
    ------
    InputError
        If an expert or a data file of the merge's job is no longer there.
    """
    spec = _whole_backbone(JobSpec.from_record(merge.manifest["job"]), store_url)
    ground = survey(spec)
    with fleet_for(spec, ground) as fleet:
        on_event(StageStarted("preparing", "experts and their task vectors"))
        crew = Crew(fleet, spec, ground)
        crew.check()
        crew.prepare(open_store(store_url), lambda done: None)
        units = len(ground.partition.layout.units)
        on_event(StageStarted("scales", "task arithmetic: the scale that agrees best on the pools"))
        scale = _best_scale(fleet, crew, units)
        on_event(StageStarted("evaluating", "every method on the same data"))
        tasks = len(spec.tasks)
        found = {
            "average": _scores(fleet, crew, _uniform(1 / tasks, tasks, units), on_event),
            "task arithmetic": _scores(fleet, crew, _uniform(scale, tasks, units), on_event),
        }
        crew.dismiss()  # their CPUs are the evaluators' now
        found["merge"] = measure(
            fleet,
            merge,
            store_url,
            spec.cluster.threads_per_worker,
            lambda score: on_event(evaluated(score)),
        )
    return _table(merge.manifest, found, scale)


def _whole_backbone(spec: JobSpec, store_url: str) -> JobSpec:
    """The same job with nothing tinted but the head, and its artifacts in this store."""
    changed: dict[str, Any] = {
        "tint": spec.tint.model_copy(update={"site": "head", "learned": False}),
        "store": store_url,
    }
    return spec.model_copy(update=changed)


def _uniform(value: float, tasks: int, units: int) -> Floats:
    return np.full((tasks, units), value, dtype=np.float32)


def _best_scale(fleet: Fleet, crew: Crew, units: int) -> float:
    tasks = crew.cast.tasks
    agreement = {}
    for scale in SCALES:
        theta = crew.cast.shard.call("merge", _uniform(scale, len(tasks), units))
        refs = [worker.call("agreement", name, theta, _EXAMPLES) for name, worker in tasks.items()]
        agreement[scale] = mean(fleet.get(refs))
    return max(agreement, key=lambda scale: agreement[scale])


def _scores(fleet: Fleet, crew: Crew, coefficients: Floats, on_event: OnEvent) -> list[TaskScore]:
    theta = crew.cast.shard.call("merge", coefficients)
    refs = [worker.call("evaluate", name, theta) for name, worker in crew.cast.tasks.items()]
    scores: list[TaskScore] = fleet.get(refs)
    for score in scores:
        on_event(evaluated(score))
    return scores


def _table(
    manifest: Mapping[str, Any], found: Mapping[str, Sequence[TaskScore]], scale: float
) -> CompareTable:
    reference = found["merge"]
    rows = [CompareRow("experts", s.task, s.metric, s.expert) for s in reference]
    averages = {"experts": mean([s.expert for s in reference])}
    normalised = {"experts": 1.0}
    for method, scores in found.items():
        rows += [CompareRow(method, s.task, s.metric, s.merged) for s in scores]
        averages[method] = mean([s.merged for s in scores])
        normalised[method] = normalised_accuracy(scores)
    name = f"{manifest['name']}/v{manifest['version']}"
    return CompareTable(name, rows, averages, normalised, scale)
