"""The ways of growing, from the cheapest on; each leaves a candidate and changes nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tintray.checkpoints.tensors import tensors_as_bytes
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
from tintray.published.files import COEFFICIENTS
from tintray.storage.artifacts.blobs import BlobRef, put_blob
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.tasks.evaluation import TaskScore
from tintray.vectors.coefficients import Coefficients


@dataclass(frozen=True)
class Attempt:
    """What a way of growing came to, not yet published."""

    verdict: Verdict
    result: Result
    seconds: float = 0.0


@dataclass(frozen=True)
class Growth:
    """A change of a merge, once the tasks that are worked on are prepared.

    Attributes
    ----------
    spec
        The child's job.
    workers
        Those of the new or refreshed tasks, or of the old ones that a removal may harm.
    base_blob
        The base's backbone tensors, as an artifact.
    prepared
        What each new or refreshed task was prepared with.
    """

    context: Context
    lineage: Lineage
    spec: JobSpec
    base: SplitModel
    workers: TintWorkerPool
    base_blob: BlobRef
    prepared: Mapping[str, Prepared]

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

    def losses(self, after: Sequence[TaskScore]) -> tuple[Loss, ...]:
        """Which of them lose more than the tolerance."""
        return losses(references(self.parent, self.old), after, self.spec.growth.tolerance)

    def parent_backbone(self) -> Tensor:
        """θ [P] of the parent."""
        return self.base.partition.layout.flatten(self.parent.merge.backbone)

    def start(self) -> Tensor:
        """Λ [K, L] of the child's tasks as the parent has it; zeros for those that it has not."""
        return rows_of(self.parent.merge.tasks, self.parent.coefficients, self.spec)

    def fit_rounds(self, workers: TintWorkerPool, coefficients: Coefficients) -> Coordinator:
        """Move the coefficients of these workers' tasks, and their tints."""
        rounds = self.spec.growth.coefficient_rounds
        backend = self.context.backend
        found = make_coordinator(self.spec, self.base, backend, workers, coefficients, rounds)
        run_all_rounds(self.context.run, found, rounds)
        return found

    def result(
        self,
        theta: Tensor | None,
        coefficients: Tensor,
        tints: Mapping[str, Mapping[str, Tensor]],
        scores: Iterable[TaskScore],
        selected_fraction: Mapping[str, float],
        peak_memory: int,
    ) -> Result:
        """What the child is published from."""
        initial = begun(self.lineage, self.spec, coefficients)
        measured = {score.task: score for score in scores}
        figures = (measured, selected_fraction, peak_memory)
        return Result(theta, coefficients, initial, tints, *figures)

    def use_artifacts(self, prepared: Prepared) -> None:
        """Need what a task has, so that nothing of it lies in the store unowned."""
        use_artifacts(self.context.run, prepared)

    def notify(self, text: str) -> None:
        """Say something that the user should know."""
        self.context.run.on_event(Notice(text))


def rows_of(tasks: Sequence[str], rows: Tensor, spec: JobSpec) -> Tensor:
    """Rows [K, L] of ``tasks``, in the order of a job; zeros for tasks that are not among them."""
    known = dict(zip(tasks, rows, strict=True))
    zeros = torch.zeros_like(rows[0])
    return torch.stack([known.get(task.name, zeros) for task in spec.tasks])


def begun(lineage: Lineage, spec: JobSpec, coefficients: Tensor) -> Tensor:
    """Where the rows of a child's Λ [K, L] began: those of its new tasks at zero."""
    parent = lineage.parent.merge
    before = dict(zip(parent.tasks, parent.tensors(COEFFICIENTS)["initial"], strict=True))
    initial = coefficients * 0
    for row, task in enumerate(spec.tasks):
        if task.name in before and task.name not in lineage.change.names:
            initial[row] = before[task.name]
    return initial


def tint_config(spec: JobSpec, base: SplitModel, rounds: int, *, new: bool) -> TintConfig:
    """How tint layers are learned under a backbone that stays: new ones, or old ones again."""
    batch_size = spec.growth.batch_size if new else spec.fit.batch_size
    warmup = round(spec.fit.warmup * rounds / spec.fit.rounds)
    return TintConfig(rounds, batch_size, base.tint_lr(spec), spec.fit.schedule, new, warmup)


def attempt(growth: Growth, mode: Mode, before: Sequence[Attempt]) -> Attempt:
    """Grow in this way, going on from what the cheaper ways before it came to."""
    started = time.perf_counter()
    if mode == "tint":
        found = _tint(growth)
    elif mode == "coefficients":
        found = _coefficients(growth, before)
    else:
        found = _joint(growth, before)
    return replace(found, seconds=time.perf_counter() - started)


def _tint(growth: Growth) -> Attempt:
    """Learn the new tasks' tint layers; the backbone and every old task stay, bit for bit.

    Nothing of an old task is loaded: the cost does not depend on how many there are.
    """
    workers = growth.workers
    array: Floats = growth.parent_backbone().numpy()
    config = tint_config(growth.spec, growth.base, growth.spec.growth.rounds, new=True)
    tinted = workers.fit_tints(growth.new, config, array)
    _notify_of_prefixes(growth, tinted)
    scores = workers.evaluate(growth.new, array)
    return Attempt(
        Verdict("tint", {found.task: found.agreement or 0.0 for found in tinted}, ()),
        growth.result(
            None,
            growth.start(),
            workers.tints(),
            scores,
            {found.task: found.kept for found in tinted},
            workers.peak_memory(),
        ),
    )


def _notify_of_prefixes(growth: Growth, tinted: Sequence[Tinted]) -> None:
    """Say which prefix activations were there, and note those that are by now.

    They are a cache for the next attempt, and large: no job owns them.
    """
    whole = [found.task for found in tinted if not found.prefixed]
    if whole:
        growth.notify(f"{', '.join(whole)}: no prefix to cache, every round runs the whole model")
    reused = [found.task for found in tinted if found.reused]
    if reused:
        growth.notify(
            f"prefix activations of {len(reused)} of {len(tinted)} tasks were reused from the store"
        )
    growth.context.run.catalog.artifacts.record(
        KnownArtifact(found.activations, "prefix-activations", {"task": found.task})
        for found in tinted
        if found.activations is not None
    )


def _coefficients(growth: Growth, before: Sequence[Attempt]) -> Attempt:
    """Learn the new tasks' coefficients with their tints; then learn the old tints again.

    Where the first has gained next to nothing over a cheaper way, the second is not done.
    Old coefficients stay, so that the new tasks' vectors are all that is added to what is there:
    no old task vector is read. Under the new backbone, old tints go on from where they were.
    """
    names, workers = growth.new, growth.workers
    workers.load(_foundation(growth), growth.prepared)
    start = growth.start()
    order = [task.name for task in growth.spec.tasks]
    rows = [order.index(name) for name in names]
    learned = Coefficients(start[rows], growth.spec.merge.bounds)
    coordinator = growth.fit_rounds(workers, learned)
    array = coordinator.backbone().copy()
    start[rows] = learned.values
    verdict = Verdict("coefficients", workers.held_agreement(array), ())
    tried = [attempt.verdict for attempt in before]
    if hopeless([*tried, verdict], growth.spec.growth.target):
        peak = _dismissed(workers)
        nothing = growth.result(None, start, {}, (), {}, peak)
        return Attempt(replace(verdict, abandoned=True), nothing)
    scores, tints = workers.evaluate(names, array), workers.tints()
    peak = _dismissed(workers)
    if growth.old:
        after, again, lost, peak_again = _refit_old(growth, array)
        verdict = replace(verdict, losses=lost)
        scores, tints, peak = [*scores, *after], {**tints, **again}, max(peak, peak_again)
    return Attempt(
        verdict,
        growth.result(
            torch.from_numpy(array),
            start,
            tints,
            scores,
            coordinator.selected_fractions(names),
            peak,
        ),
    )


def _refit_old(
    growth: Growth, array: Floats
) -> tuple[list[TaskScore], dict[str, dict[str, Tensor]], tuple[Loss, ...], int]:
    """Learn the old tints again under θ [P], without experts: scores, tints, losses, bytes."""
    names, spec = growth.old, growth.spec
    workers = old_workers(growth.context, growth.lineage, spec, growth.base, names)
    workers.check()
    workers.label(growth.use_artifacts)
    workers.fit_tints(
        names, tint_config(spec, growth.base, spec.growth.refit_rounds, new=False), array
    )
    after = workers.evaluate(names, array)
    return after, workers.tints(), growth.losses(after), _dismissed(workers)


def old_workers(
    context: Context, lineage: Lineage, spec: JobSpec, base: SplitModel, names: Sequence[str]
) -> TintWorkerPool:
    """Workers of tasks of the parent, taken up without their experts."""
    published = lineage.parent.published_tasks(names)
    return TintWorkerPool(context.backend, part_of(spec, names), base, published)


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


def _joint_base(growth: Growth) -> BlobRef:
    """What all task vectors are added to: the base, with what the parent learned to correct it."""
    if not growth.parent.manifest.corrected:
        return growth.base_blob
    return _without(growth, growth.parent.merge.tasks)


def _without(growth: Growth, names: Sequence[str]) -> BlobRef:
    """The parent's backbone without some tasks, as an artifact that the job alone needs."""
    layout = growth.base.partition.layout
    theta = without(growth.parent, layout, growth.base_blob, names)
    ref = put_blob(growth.context.store, tensors_as_bytes(layout.views(theta)))
    growth.context.run.used(KnownArtifact(ref, "foundation", {"of": str(growth.parent.ref)}))
    return ref


def _joint(growth: Growth, before: Sequence[Attempt]) -> Attempt:
    """Learn all coefficients and all tints, each from where it is; old tasks without experts."""
    spec = growth.spec
    published = growth.parent.published_tasks(growth.old)
    peak = _dismissed(growth.workers)
    workers = TintWorkerPool(growth.context.backend, spec, growth.base, published)
    workers.check()
    prepared = workers.label(growth.use_artifacts)
    last = before[-1] if before else None
    if last is not None:
        workers.give_tints({name: last.result.tints[name] for name in growth.new})
    workers.load(_joint_base(growth), prepared)
    start = growth.start() if last is None else last.result.coefficients
    coefficients = Coefficients(start, spec.merge.bounds)
    coordinator = growth.fit_rounds(workers, coefficients)
    array = coordinator.backbone().copy()
    names = [task.name for task in spec.tasks]
    agreement = workers.held_agreement(array)
    scores = workers.evaluate(names, array)
    lost = growth.losses(scores)
    tints = workers.tints()
    return Attempt(
        Verdict("joint", {n: share for n, share in agreement.items() if n in growth.new}, lost),
        growth.result(
            torch.from_numpy(array),
            coefficients.values.clone(),
            tints,
            scores,
            coordinator.selected_fractions(names),
            max(peak, _dismissed(workers)),
        ),
    )
