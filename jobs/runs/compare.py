"""A merge beside what a user would compare it with, on the same data.

The rivals are the individual experts and merging methods: the weight average and task arithmetic
(arXiv 2212.04089), or as many as are asked for. They share whole backbones and keep each expert's
own head. Where a method has a scale to be tuned, it is the one at which the merge agrees best with
the experts on the pools, where no label is read; test data is used once, for the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tintray.errors import SpecError, nearest
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.config.merge_sections import ADAMERGING, SURGERY, TintSpec
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import as_argument
from tintray.jobs.engine.worker import Worker
from tintray.jobs.events import Notice, OnEvent, PhaseStarted
from tintray.jobs.results import CompareRow, CompareTable
from tintray.jobs.runs.evaluate import job_of, measure
from tintray.jobs.runs.fitting import coordinator_for
from tintray.jobs.runs.job_run import evaluated
from tintray.jobs.runs.methods import PreparedJob, resolve_job
from tintray.jobs.runs.pipeline import backend_for, on_gpus_there
from tintray.jobs.runs.summaries import means
from tintray.merging import Recipe, find_method, methods, recipe
from tintray.merging.scale_search import climb
from tintray.published.manifest import Manifest
from tintray.published.merge import Merge
from tintray.storage.artifacts.store import open_store
from tintray.tasks.evaluation import TaskScore, mean

RIVALS = ("average", "task_arithmetic")
"""What a merge is compared with where nobody says otherwise."""
_EXAMPLES = 128  # pool examples per task on which scales are compared
_MOST_SCALES = 40  # so many that the best is never the lowest or the highest of them
_ADAMERGING_LR = 1e-3  # what the method of arXiv 2310.02575 is run with
_LEARNED = (*ADAMERGING, SURGERY)


def compare(
    merge: Merge, store_url: str, on_event: OnEvent, names: Sequence[str] = RIVALS
) -> CompareTable:
    """Measure a merge, its experts and other merges of their task vectors.

    ``names`` are merging methods, or ``("all",)`` for every one that can merge so many tasks.

    Raises InputError if there is no such method, or an expert or a data file of the merge's job is
    gone.
    """
    _ = merge.factory  # a merge of one that may not run is not compared
    spec = job_of(merge)
    spec = on_gpus_there(whole_backbone(spec, store_url))
    chosen = choose(names, len(spec.tasks), on_event)
    spec, base = resolve_job(spec)
    measured: dict[str, Sequence[TaskScore]] = {}
    scales: dict[str, float] = {}
    with backend_for(spec, base) as backend:
        on_event(PhaseStarted("preparing", "experts and their task vectors"))
        job = PreparedJob.of(spec, base, backend, open_store(spec.store), on_event)
        for name in (name for name in chosen if name not in ADAMERGING):
            on_event(PhaseStarted("comparing", _label(name)))
            measured[_label(name)] = rival(job, name, scales)
        learned = [name for name in chosen if name in ADAMERGING]
        start = scales.get(_label("task_arithmetic"), 0.0)
        if learned and not start:
            of = recipe("task_arithmetic")
            start = _best_scale(job, of, *_start_and_direction(job, of))
        job.workers.dismiss()  # their CPUs are the next members' now
        for name in learned:
            on_event(PhaseStarted("comparing", _label(name)))
            scales[_label(name)] = start
            measured[_label(name)] = _learned_rival(job, name, start)
        on_event(PhaseStarted("evaluating", "the merge itself"))
        measured["merge"] = measure(backend, merge, store_url, spec.cluster, on_event)
    return _table(merge.manifest, measured, scales)


def choose(names: Sequence[str], tasks: int, on_event: OnEvent) -> list[str]:
    """The methods that are meant; with ``all``, those that can merge so many tasks.

    Raises SpecError for a name that is none (with the nearest), or a method that cannot merge so
    many tasks.
    """
    known = [*methods(), *_LEARNED]
    for name in names:
        if name not in ("all", *known):
            raise SpecError(
                f"there is no merging method '{name}' to compare with{nearest(name, known)}; "
                f"there are all, {', '.join(known)}"
            )
    chosen = known if "all" in names else list(dict.fromkeys(names))
    for name in [name for name in chosen if name not in _LEARNED]:
        method = find_method(name)
        if "all" not in names:
            method.check_tasks(tasks)
        elif method.most is not None and method.most < tasks:
            on_event(Notice(f"'{name}' merges {method.most} experts, not {tasks}: left out"))
            chosen.remove(name)
    return chosen


def _label(name: str) -> str:
    return name.replace("_", " ")


def whole_backbone(spec: JobSpec, store_url: str) -> JobSpec:
    """The same job with nothing tinted but the head, and its artifacts in this store.

    No rival learns from features.
    """
    plain = {"method": "task_arithmetic", "init": "task_arithmetic", "parameters": {}}
    return spec.on_own_cluster().changed(
        merge=plain | {"scale": None, "bounds": None},
        tint=TintSpec(learned=False),
        objective={"feature_weight": 0.0},
        store=Location(store_url),
    )


def rival(job: PreparedJob, name: str, scales: dict[str, float]) -> list[TaskScore]:
    """Measure a method, at its best scale where it has one to be tuned.

    Surgery operates on task arithmetic.
    """
    of = recipe("task_arithmetic" if name == SURGERY else name, seed=job.spec.fit.seed)
    if of.method.own is not None:
        scores = job.scores(job.merged(of, None, job.on_event, most=1))
    else:
        base, direction = _start_and_direction(job, of)
        scale = of.method.start(len(job.spec.tasks))
        if of.method.tuned:
            scale = scales[_label(name)] = _best_scale(job, of, base, direction)
        theta = {"": base + np.float32(scale) * direction}
        scores = job.operate(theta)[1] if name == SURGERY else job.scores(theta)
    for score in scores:
        job.on_event(evaluated(score))
    return scores


def _start_and_direction(job: PreparedJob, of: Recipe) -> tuple[Floats, Floats]:
    """θ₀ [P], and what a method adds to it at scale 1."""
    units = len(job.base.partition.layout.units)
    base = job.workers.merge(np.zeros((len(job.spec.tasks), units), dtype=np.float32))
    return base, job.merged(of, 1.0, job.on_event, most=1)[""] - base


def _best_scale(job: PreparedJob, of: Recipe, base: Floats, direction: Floats) -> float:
    """The scale at which the merge agrees best with the experts on the start of their pools.

    The search begins at 1/K, where a sum of task vectors is their mean.
    """
    tasks, method = len(job.spec.tasks), of.method

    def agreement(scale: float) -> float:
        theta = as_argument(job.backend.put(base + np.float32(scale) * direction))
        return mean(job.backend.get(job.workers.each(None, Worker.agreement, _EXAMPLES, theta)))

    found = climb(agreement, 1 / tasks if method.adds_up else method.start(tasks), _MOST_SCALES)
    return max(found, key=lambda scale: found[scale])


def _learned_rival(job: PreparedJob, name: str, start: float) -> list[TaskScore]:
    """Measure AdaMerging: the job's rounds and batches, its source's rate and bounds.

    The job's rate is meant for self-labels; at it, entropy alone lost the experts' answers.
    """
    merge = {"method": name, "scale": start, "bounds": (0.0, 1.0)}
    fit = {"coefficient_lr": _ADAMERGING_LR, "schedule": "constant"}
    spec, base = resolve_job(job.spec.changed(merge=merge, fit=fit))
    learned = PreparedJob.of(spec, base, job.backend, job.store, job.on_event)
    _, coordinator = coordinator_for(learned)
    coordinator.fit(spec.fit.rounds, job.on_event)
    scores = coordinator.scores(lambda score: job.on_event(evaluated(score)))
    learned.workers.dismiss()
    return scores


def _table(
    manifest: Manifest,
    measured: Mapping[str, Sequence[TaskScore]],
    scales: Mapping[str, float],
) -> CompareTable:
    reference = measured["merge"]
    rows = [CompareRow("experts", s.task, s.metric, s.expert) for s in reference]
    averages = {"experts": means(manifest.tasks, reference).expert_average}
    normalised: dict[str, float | None] = {"experts": 1.0}
    for method, scores in measured.items():
        rows += [CompareRow(method, s.task, s.metric, s.merged) for s in scores]
        of = means(manifest.tasks, scores)
        averages[method], normalised[method] = of.average, of.normalised_accuracy
    known, shares = (
        {method: figure for method, figure in figures.items() if figure is not None}
        for figures in (averages, normalised)
    )
    return CompareTable(manifest.ref, rows, known, shares, scales.get("task arithmetic"), scales)
