"""The ways of growing, from the cheapest on; each leaves a candidate and changes nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from tintray.checkpoints.tensors import TensorFile
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared
from tintray.jobs.engine.coordinator import Coordinator
from tintray.jobs.engine.tint_worker import TintConfig, Tinted, TintWorkerPool
from tintray.jobs.events import Notice
from tintray.jobs.runs.change import part_of
from tintray.jobs.runs.fitting import make_coordinator, run_all_rounds
from tintray.jobs.runs.guard import Loss, Mode, Verdict, hopeless, losses, references
from tintray.jobs.runs.outcome import Lineage, Result
from tintray.jobs.runs.parent import Parent
from tintray.jobs.runs.pipeline import Context
from tintray.jobs.runs.recomposition import without
from tintray.jobs.runs.records import use_artifacts
from tintray.jobs.runs.recovery import Cause, on_what_is_left
from tintray.published.files import COEFFICIENTS
from tintray.storage.artifacts.blobs import BlobRef, put_blob
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.tasks.evaluation import TaskScore
from tintray.tinting.stored_tints import StoredTint
from tintray.vectors.coefficients import Coefficients


@dataclass(frozen=True)
class Attempt(Verdict):
    """What a way of growing came to, not yet published."""

    result: Result = field(kw_only=True)
    seconds: float = 0.0


@dataclass(frozen=True)
class Child:
    """A merge that is to grow out of another; ``spec`` is its job."""

    lineage: Lineage
    spec: JobSpec
    base: SplitModel

    def after(self, cause: Cause) -> Self:
        """The same change, from its beginning; on a cluster with the workers that are left."""
        return replace(self, spec=on_what_is_left(self.spec, cause))

    @property
    def parent(self) -> Parent:
        """The merge that grows."""
        return self.lineage.parent

    @property
    def new(self) -> tuple[str, ...]:
        """The tasks that the change is about."""
        return self.lineage.change.names

    @property
    def old(self) -> tuple[str, ...]:
        """The tasks that stay as they were asked for."""
        return tuple(task.name for task in self.spec.tasks if task.name not in self.new)

    def old_workers(self, context: Context, names: Sequence[str]) -> TintWorkerPool:
        """Workers of tasks of the parent, taken up without their experts."""
        published = self.parent.published_tasks(names)
        return TintWorkerPool(context.backend, part_of(self.spec, names), self.base, published)

    def losses(self, names: Sequence[str], after: Sequence[TaskScore]) -> tuple[Loss, ...]:
        """Which of these tasks lose more than the tolerance."""
        return losses(references(self.parent, names), after, self.spec.growth.tolerance)

    def start(self) -> Tensor:
        """Λ [K, L] of the child's tasks as the parent has it; zeros for those that it has not."""
        rows = self.parent.coefficients
        known = dict(zip(self.parent.merge.tasks, rows, strict=True))
        return torch.stack([known.get(t.name, torch.zeros_like(rows[0])) for t in self.spec.tasks])

    def result(
        self,
        theta: Tensor | None,
        coefficients: Tensor,
        tints: Mapping[str, StoredTint],
        scores: Iterable[TaskScore],
        selected_fraction: Mapping[str, float],
        peak_memory: int,
    ) -> Result:
        """What the child is published from; its new tasks' rows of Λ [K, L] began at zero."""
        parent = self.parent.merge
        before = dict(zip(parent.tasks, parent.tensors(COEFFICIENTS)["initial"], strict=True))
        initial = coefficients * 0
        for row, task in enumerate(self.spec.tasks):
            if task.name in before and task.name not in self.new:
                initial[row] = before[task.name]
        measured = {score.task: score for score in scores}
        figures = (measured, selected_fraction, peak_memory)
        return Result(theta, coefficients, initial, tints, *figures)

    def measure(self, context: Context, fitted: Result) -> Result:
        """What was measured to choose a way, and what the guard goes by, is what is published."""
        for score in fitted.scores.values():
            context.run.measured(score)
        return fitted


@dataclass(frozen=True)
class Growth(Child):
    """A child, once the tasks that are worked on are prepared.

    ``workers`` are those of the new or refreshed tasks, or of the old ones that a removal may harm;
    ``base_blob`` are the base's backbone tensors, as an artifact.
    """

    context: Context
    workers: TintWorkerPool
    base_blob: BlobRef

    def fit_rounds(self, workers: TintWorkerPool, coefficients: Coefficients) -> Coordinator:
        """Move the coefficients of these workers' tasks, and their tints."""
        rounds, backend = self.spec.growth.coefficient_rounds, self.context.backend
        members = (self.spec, self.base, backend, workers, coefficients)
        coordinator = make_coordinator(*members, rounds)
        run_all_rounds(self.context.run, coordinator, rounds)
        return coordinator

    def label(self, workers: TintWorkerPool) -> dict[str, Prepared]:
        """Have self-labels of tasks, without telling; none of them lies in the store unowned."""
        return workers.label(lambda done: use_artifacts(self.context.run, done))

    def notify(self, text: str) -> None:
        """Say something that the user should know."""
        self.context.run.on_event(Notice(text))


def tint_config(spec: JobSpec, base: SplitModel, rounds: int, *, new: bool) -> TintConfig:
    """How tint layers are learned under a backbone that stays: new ones, or old ones again."""
    batch_size = spec.growth.batch_size if new else spec.fit.batch_size
    warmup = round(spec.fit.warmup * rounds / spec.fit.rounds)
    return TintConfig(rounds, batch_size, spec.fit.schedule, new, warmup)


def attempt(growth: Growth, mode: Mode, before: Sequence[Attempt]) -> Attempt:
    """Grow in this way, going on from what the cheaper ways before it came to."""
    started = time.perf_counter()
    if mode == "tint":
        made = _tint(growth)
    elif mode == "coefficients":
        made = _coefficients(growth, before)
    else:
        made = _joint(growth, before)
    return replace(made, seconds=time.perf_counter() - started)


def _tint(growth: Growth) -> Attempt:
    """Learn the new tasks' tint layers; the backbone and every old task stay, bit for bit.

    Nothing of an old task is loaded: the cost does not depend on how many there are.
    """
    workers = growth.workers
    theta = growth.base.partition.layout.flatten(growth.parent.merge.backbone).numpy()
    config = tint_config(growth.spec, growth.base, growth.spec.growth.rounds, new=True)
    tinted = workers.fit_tints(growth.new, config, theta, growth.context.run.on_event)
    _notify_of_prefixes(growth, tinted)
    scores = workers.evaluate(growth.new, theta)
    selected = {of_task.task: of_task.kept for of_task in tinted}
    made = (workers.tints(), scores, selected, workers.peak_memory())
    agreement = {of_task.task: of_task.agreement or 0.0 for of_task in tinted}
    return Attempt("tint", agreement, (), result=growth.result(None, growth.start(), *made))


def _notify_of_prefixes(growth: Growth, tinted: Sequence[Tinted]) -> None:
    """Say which prefix activations were there, and note those that are by now.

    They are a cache for the next attempt, and large: no job owns them.
    """
    whole = [of_task.task for of_task in tinted if not of_task.prefixed]
    if whole:
        growth.notify(f"{', '.join(whole)}: no prefix to cache, every round runs the whole model")
    reused = sum(of_task.reused for of_task in tinted)
    if reused:
        growth.notify(
            f"prefix activations of {reused} of {len(tinted)} tasks were reused from the store"
        )
    growth.context.run.catalog.artifacts.record(
        KnownArtifact(of_task.activations, "prefix-activations", {"task": of_task.task})
        for of_task in tinted
        if of_task.activations is not None
    )


def _coefficients(growth: Growth, before: Sequence[Attempt]) -> Attempt:
    """Learn the new tasks' coefficients with their tints; then learn the old tints again.

    Where the first has gained next to nothing over a cheaper way, the second is not done.
    Old coefficients stay, so that the new tasks' vectors are all that is added to what is there:
    no old task vector is read. Under the new backbone, old tints go on from where they were.
    """
    names, workers = growth.new, growth.workers
    workers.load(_foundation(growth), growth.context.prepared)
    start = growth.start()
    order = [task.name for task in growth.spec.tasks]
    rows = [order.index(name) for name in names]
    learned = Coefficients(start[rows], growth.spec.merge.bounds)
    coordinator = growth.fit_rounds(workers, learned)
    theta = coordinator.backbone().copy()
    start[rows] = learned.values
    agreement = workers.held_agreement(theta)
    if hopeless([*before, Verdict("coefficients", agreement, ())], growth.spec.growth.target):
        nothing = growth.result(None, start, {}, (), {}, _dismissed(workers))
        return Attempt("coefficients", agreement, (), abandoned=True, result=nothing)
    scores, tints, peak = workers.evaluate(names, theta), workers.tints(), _dismissed(workers)
    lost: tuple[Loss, ...] = ()
    if growth.old:
        after, again, lost, peak_again = _refit_old(growth, theta)
        scores, tints, peak = [*scores, *after], {**tints, **again}, max(peak, peak_again)
    made = (start, tints, scores, coordinator.selected_fractions(names), peak)
    result = growth.result(torch.from_numpy(theta), *made)
    return Attempt("coefficients", agreement, lost, result=result)


def _refit_old(
    growth: Growth, theta: Floats
) -> tuple[list[TaskScore], dict[str, StoredTint], tuple[Loss, ...], int]:
    """Learn the old tints again under θ [P], without experts: scores, tints, losses, bytes."""
    names, spec = growth.old, growth.spec
    workers = growth.old_workers(growth.context, names)
    workers.check()
    growth.label(workers)
    config = tint_config(spec, growth.base, spec.growth.refit_rounds, new=False)
    workers.fit_tints(names, config, theta, growth.context.run.on_event)
    after = workers.evaluate(names, theta)
    return after, workers.tints(), growth.losses(names, after), _dismissed(workers)


def _dismissed(workers: TintWorkerPool) -> int:
    """End workers, so that others can use their CPUs; the most bytes that they have held."""
    peak = workers.peak_memory()
    workers.dismiss()
    return peak


def _foundation(growth: Growth) -> BlobRef:
    """What the new tasks' vectors are added to: the parent's backbone, without older versions."""
    before = [name for name in growth.new if name in growth.parent.merge.tasks]
    if not any(growth.parent.row(name).any() for name in before):
        return growth.parent.backbone
    return _without(growth, before)


def _without(growth: Growth, names: Sequence[str]) -> BlobRef:
    """The parent's backbone without some tasks, as an artifact that the job alone needs."""
    layout = growth.base.partition.layout
    theta = without(growth.parent, layout, growth.base_blob, names)
    ref = put_blob(growth.context.store, TensorFile(layout.views(theta)))
    growth.context.run.used(KnownArtifact(ref, "foundation", {"of": str(growth.parent.ref)}))
    return ref


def _joint(growth: Growth, before: Sequence[Attempt]) -> Attempt:
    """Learn all coefficients and all tints, each from where it is; old tasks without experts.

    All task vectors are added to the base, with what the parent learned to correct it.
    """
    spec, parent = growth.spec, growth.parent
    published = parent.published_tasks(growth.old)
    peak = _dismissed(growth.workers)
    workers = TintWorkerPool(growth.context.backend, spec, growth.base, published)
    workers.check()
    prepared = growth.label(workers)
    start = growth.start()
    if before:
        last = before[-1].result
        start = last.coefficients
        workers.give_tints({name: last.tints[name].tensors for name in growth.new})
    corrected = parent.manifest.corrected
    base_blob = _without(growth, parent.merge.tasks) if corrected else growth.base_blob
    workers.load(base_blob, prepared)
    coefficients = Coefficients(start, spec.merge.bounds)
    coordinator = growth.fit_rounds(workers, coefficients)
    theta = coordinator.backbone().copy()
    names = [task.name for task in spec.tasks]
    agreement = workers.held_agreement(theta)
    scores = workers.evaluate(names, theta)
    lost, tints = growth.losses(growth.old, scores), workers.tints()
    selected = coordinator.selected_fractions(names)
    made = (tints, scores, selected, max(peak, _dismissed(workers)))
    result = growth.result(torch.from_numpy(theta), coefficients.values.clone(), *made)
    of_new = {name: share for name, share in agreement.items() if name in growth.new}
    return Attempt("joint", of_new, lost, result=result)
