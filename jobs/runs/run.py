"""A job from its file to its published merge: fitted, or merged by a rule alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.merge_sections import SURGERY
from tintray.jobs.engine.arrays import Floats, readable
from tintray.jobs.engine.asking import first_drawn
from tintray.jobs.engine.base_model import SplitModel, load_base_model
from tintray.jobs.engine.coordinator import Coordinator
from tintray.jobs.engine.grouping import micro_batch
from tintray.jobs.engine.job_size import holds_task_vectors, job_recipe, of_an_example
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.events import Notice, OnEvent
from tintray.jobs.runs.advice import far_tasks
from tintray.jobs.runs.fitting import coordinator_for, run_rounds_left
from tintray.jobs.runs.floor import Start, compare_with_start
from tintray.jobs.runs.job_run import JobRun, enter_job
from tintray.jobs.runs.methods import (
    PreparedJob,
    correction_rate,
    resolve_job,
    start_coefficients,
    start_scale,
)
from tintray.jobs.runs.outcome import Hosted, Result
from tintray.jobs.runs.pipeline import Context, execute, open_store_and_catalog, open_writable
from tintray.jobs.runs.records import on_prepared, use_artifacts, use_statistics
from tintray.jobs.runs.recovery import Cause, on_what_is_left
from tintray.jobs.runs.site_search import find_site
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState
from tintray.vectors.coefficients import Coefficients


def run_job(spec: JobSpec, on_event: OnEvent) -> Manifest:
    """Run a new job; returns the manifest of the merge that it published.

    Raises InputError before any compute is spent, if the job file, an expert, data, store or
    catalog cannot be used; TintrayError if something fails while running; nothing is published
    then.
    """
    spec, base = resolve_job(spec)
    store, opened = open_store_and_catalog(spec)
    with opened as catalog:
        run = JobRun(enter_job(catalog, spec), catalog, on_event)
        with run.running():
            return carry_on(run, spec, base, store)


def continue_job(job_id: str, catalog: Catalog, spec: JobSpec, on_event: OnEvent) -> Manifest:
    """Run a job that waits in the catalog, from its last checkpoint if it has one.

    Returns the manifest of the merge that it published. Whatever goes wrong is how the job ends.

    Raises LeaseHeldError if another process works on it; TintrayError as ``run_job``.
    """
    run = JobRun(job_id, catalog, on_event)
    with run.running():
        spec, base = resolve_job(spec)
        return carry_on(run, spec, base, open_writable(spec))


def carry_on(run: JobRun, spec: JobSpec, base: SplitModel, store: ArtifactStore) -> Manifest:
    """The phases of a job whose lease is held and whose store can be written; see above."""
    if spec.merge.learned:
        return execute(FitPlan(spec, base), run, store)
    return execute(MethodPlan(spec, base), run, store)


@dataclass(frozen=True)
class JobPlan:
    """What a fit and a merging method have in common: every task comes from its expert."""

    spec: JobSpec
    base: SplitModel
    lineage: None = None  # it grows from no other merge

    @property
    def reasons(self) -> Mapping[JobState, str]:
        """What is said of each phase as it begins."""
        merge, rounds = self.spec.merge, self.spec.fit.rounds
        return {
            JobState.PLANNING: f"checking {len(self.spec.tasks)} experts against the base",
            JobState.PREPARING: "self-labels: each expert predicts its pool once",
            JobState.FITTING: f"{rounds} rounds" if merge.learned else f"merging by {merge.method}",
        }

    def after(self, cause: Cause) -> Self:
        """On a cluster, with the workers that are left; without memory, half as many examples."""
        spec = on_what_is_left(self.spec, cause)
        if cause == "memory":
            each = of_an_example(spec, self.base.partition.module)
            spec = spec.changed(fit={"micro_batch": max(1, micro_batch(spec, each) // 2)})
        return replace(self, spec=spec)

    def check(self, context: Context) -> Hosted[WorkerPool[Worker]]:
        """Find the site where it is to be found, leave tasks out that may be, check the others."""
        spec, base, backend = self.spec, self.base, context.backend
        report = None
        if spec.tint.auto:
            spec, report = find_site(spec, backend, context.store, context.run.on_event)
            base = load_base_model(spec)
        searched = report is not None  # which has asked for whole pools

        def pool(spec: JobSpec, base: SplitModel) -> WorkerPool[Worker]:
            first = None if searched else first_drawn(spec)
            return WorkerPool(Worker, backend, spec, base, first_drawn=first)

        workers = pool(spec, base)
        skipped: dict[str, str] = {}
        if spec.on_task_error == "skip":
            skipped = _failed(workers, context.run.on_event)
        if skipped:  # what is left is a job like any other: the merge is that of a job without them
            workers.dismiss()
            spec = spec.without(skipped)
            base = load_base_model(spec)
            workers = pool(spec, base)
        facts = workers.check()
        for text in far_tasks(facts):
            context.run.on_event(Notice(text))
        if spec.merge.learned:
            spec = spec.changed(fit={"correction_lr": correction_rate(spec, facts)})
        return Hosted(spec, base, facts, skipped, report, workers=workers)

    def prepare(self, context: Context, checked: Hosted[WorkerPool[Worker]]) -> PreparedJob:
        """Have self-labels and task vectors of every task; load shards and groups, if any."""
        run, spec, workers = context.run, checked.spec, checked.workers
        on_done = on_prepared(run, len(spec.tasks), context.prepared)
        if holds_task_vectors(spec):
            prepared = workers.prepare(context.store, on_done)
        else:  # the method reads them tensor by tensor
            prepared = workers.label(on_done)
            workers.base_blob(context.store)  # the job needs it, and says so
        return PreparedJob(
            *(spec, checked.base, context.backend, workers, context.store, checked.facts, prepared),
            on_statistics=use_statistics(run),
            on_event=run.on_event,
        )


def _failed(workers: WorkerPool[Worker], on_event: OnEvent) -> dict[str, str]:
    """The tasks to leave out, each with its reason; told at once.

    Raises InputError if no task is left.
    """
    failures = workers.failures()
    if len(failures) == len(workers.tasks):
        raise next(iter(failures.values()))
    for name, error in failures.items():
        on_event(Notice(f"task '{name}' is left out: {error}"))
    return {name: str(error) for name, error in failures.items()}


@dataclass(frozen=True)
class Fitted:
    """The rounds are over."""

    job: PreparedJob
    coordinator: Coordinator
    coefficients: Coefficients
    initial: Tensor  # where Λ began
    start: Start | None = None  # the best merge that needs no learning, where it was looked for
    taken: bool = False  # whether it takes the place of what was learned


def keep_labels(context: Context, job: PreparedJob) -> None:
    """Need all self-labels that the rounds have asked for, in the place of the first."""
    for name, ref in job.workers.keep_labels().items():
        context.prepared[name] = replace(context.prepared[name], labels=ref)
        use_artifacts(context.run, context.prepared[name])


class FitPlan(JobPlan):
    """Learn the coefficients, and the tint layers where they are learned."""

    def fit(self, context: Context, prepared: PreparedJob) -> Fitted:
        """Run the rounds that are left."""
        prepared.load_directions()
        coefficients, coordinator = coordinator_for(prepared, watched=True)
        initial = coefficients.values.clone()
        run_rounds_left(context.run, prepared, coordinator)
        keep_labels(context, prepared)
        fitted = Fitted(prepared, coordinator, coefficients, initial)
        if coordinator.best is None or not self.spec.fit.floor:
            return fitted
        start, taken = compare_with_start(
            prepared, coordinator.best, coordinator.rounds, context.run
        )
        return replace(fitted, start=start, taken=taken)

    def measure(self, context: Context, fitted: Fitted) -> Result:
        """Measure every task under the Λ that was learned, or under the start that is better."""
        job, coordinator, start = fitted.job, fitted.coordinator, fitted.start
        best, values = coordinator.best, fitted.coefficients.values
        held_back: Mapping[str, float] = {} if best is None else best.agreement
        if start is not None and fitted.taken:
            theta = start.theta
            job.round_tints({"": theta})
            scores = job.scores({"": theta})
            held_back, values = start.agreement, torch.full_like(values, start.scale)
            for score in scores:
                context.run.measured(score)
        else:
            theta = coordinator.backbone()
            job.round_tints({"": theta})
            scores = coordinator.scores(context.run.measured)
        return Result(
            theta=readable(theta),
            coefficients=values,
            initial=fitted.initial,
            tints=job.workers.tints(),
            scores={score.task: score for score in scores},
            selected_fraction=coordinator.selected_fractions(job.facts),
            peak_memory=job.workers.peak_memory(),
            rounds=coordinator.rounds,
            held_back=held_back,
            floor=start.record(best, taken=fitted.taken) if start and best else None,
        )


Merged = tuple[PreparedJob, Mapping[str, Floats]]
"""A method has merged: θ [P] by task, or under ``""`` for all."""


class MethodPlan(JobPlan):
    """Merge by a rule; no coefficient is learned."""

    def fit(self, context: Context, prepared: PreparedJob) -> Merged:
        """Run the method over all tensors."""
        recipe, scale = job_recipe(prepared.spec), start_scale(prepared.spec)
        return prepared, prepared.merged(recipe, scale, context.run.on_event)

    def measure(self, context: Context, fitted: Merged) -> Result:
        """Measure every task on its backbone; after surgery, where that is the method."""
        job, backbones = fitted
        added: dict[str, dict[str, Tensor]] = {}
        references: dict[str, dict[str, Tensor]] = {}
        job.round_tints(backbones)
        if job.spec.merge.method == SURGERY:
            added, scores, references = job.operate(backbones)
        else:
            scores = job.scores(backbones)
        for score in scores:
            context.run.measured(score)
        tints = job.workers.tints()  # with what measuring has estimated for this backbone
        layout = job.base.partition.layout
        coefficients = start_coefficients(job.spec, layout)
        shared = backbones.get("")
        if shared is None:  # every task has a backbone of its own; the base is what they share
            for name, theta in backbones.items():
                tensors = layout.views(torch.from_numpy(theta))
                added[name] = {**added.get(name, {}), **tensors}
            shared = job.workers.merge(0 * coefficients.numpy())
        return Result(
            theta=readable(shared),
            coefficients=coefficients.clone(),
            initial=coefficients,
            tints={
                name: replace(
                    tint,
                    tensors={**tint.tensors, **added.get(name, {})},
                    reference=references.get(name, tint.reference),
                )
                for name, tint in tints.items()
            },
            scores={score.task: score for score in scores},
            selected_fraction=dict.fromkeys(job.facts, 1.0),
            peak_memory=job.workers.peak_memory(),
            extra_parameters={n: sum(t.numel() for t in of.values()) for n, of in added.items()},
        )
