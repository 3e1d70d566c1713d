"""Take tasks out of a merge: their part of the backbone exactly, and nothing of them stays."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tintray.errors import InputError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared
from tintray.jobs.engine.tint_worker import TintWorkerPool
from tintray.jobs.events import Notice
from tintray.jobs.runs.growth_modes import (
    Candidate,
    Growth,
    attempt,
    child_result,
    old_workers,
    rows_of,
    tint_config,
)
from tintray.jobs.runs.guard import Loss, Verdict, losses, references
from tintray.jobs.runs.outcome import Checked, Lineage, Result
from tintray.jobs.runs.parent import sums_task_vectors, unchanged_since
from tintray.jobs.runs.pipeline import Context, Execution, executing
from tintray.jobs.runs.recomposition import same_backbone, without
from tintray.storage.catalog.states import JobState


@dataclass(frozen=True)
class _Removal:
    """What both ways of removing have in common; ``spec`` is the child's job."""

    lineage: Lineage
    spec: JobSpec
    base: SplitModel

    @property
    def reasons(self) -> Mapping[JobState, str]:
        """What is said of each phase as it begins."""
        return {
            JobState.PLANNING: f"removing {', '.join(self.lineage.change.names)}",
            JobState.PREPARING: "the tasks that are left are taken up without their experts",
            JobState.FITTING: "tints that the guard says need it",
        }

    def unchanged(self) -> Candidate:
        """The tasks that are left, as they are."""
        parent = self.lineage.parent
        rows = rows_of(parent.merge.tasks, parent.coefficients, self.spec)
        return Candidate(Verdict("tint", {}, ()), None, rows, {}, {}, {}, 0)

    def result(self, candidate: Candidate) -> Result:
        """What the child is published from."""
        ancestor, verdict = self.lineage.ancestor, candidate.verdict
        report: dict[str, Any] = {
            "mode": verdict.mode if candidate.theta is not None else "exact",
            "backbone_of": None if ancestor is None else str(ancestor.ref),
            "losses": [loss.record() for loss in verdict.losses],
        }
        return child_result(self.lineage, self.spec, candidate, report)


@dataclass(frozen=True)
class NothingNew:
    """No task has to be prepared."""

    prepared: Mapping[str, Prepared] = field(default_factory=dict)


class ExactRemoval(_Removal):
    """What is left is there already, to the last bit: the parent's backbone, or an ancestor's."""

    def check(self, context: Context) -> Checked:
        """Nothing is read."""
        return Checked(self.spec, self.base, {})

    def prepare(self, context: Context, checked: Checked) -> NothingNew:
        """Nothing is prepared."""
        return NothingNew()

    def fit(self, context: Context, prepared: NothingNew) -> Candidate:
        """Nothing is learned."""
        _notify_of_ancestor(context, self.lineage)
        return self.unchanged()

    def measure(self, context: Context, fitted: Candidate) -> Result:
        """What was measured before holds."""
        return self.result(fitted)


@dataclass(frozen=True)
class CheckedLeft(Checked):
    """The tasks that have to be measured, without their experts."""

    workers: TintWorkerPool = field(kw_only=True)


@dataclass(frozen=True)
class RefittedRemoval(_Removal):
    """``tasks`` get another backbone: those that lose by it learn their tints again."""

    tasks: tuple[str, ...]

    def check(self, context: Context) -> CheckedLeft:
        """Check the data of those tasks."""
        workers = old_workers(context, self.lineage, self.spec, self.base, self.tasks)
        workers.check()
        return CheckedLeft(self.spec, self.base, {}, workers=workers)

    def prepare(self, context: Context, checked: CheckedLeft) -> Growth:
        """Take up their self-labels."""
        workers = checked.workers
        base_blob = workers.base_blob(context.store)
        known = (context, self.lineage, self.spec, self.base)
        growth = Growth(*known, workers, base_blob, {})
        workers.label(growth.own)
        return growth

    def fit(self, context: Context, prepared: Growth) -> Candidate:
        """Measure the tasks, learn those again that lose; and all together if it must be."""
        started = time.perf_counter()
        ancestor = self.lineage.ancestor
        _notify_of_ancestor(context, self.lineage)
        if ancestor is not None:
            theta = self.base.partition.layout.flatten(ancestor.merge.backbone)
        else:
            layout, gone = self.base.partition.layout, self.lineage.change.names
            theta = without(self.lineage.parent, layout, prepared.base_blob, gone)
        candidate = self._refitted(prepared, theta.numpy())
        lost = candidate.verdict.losses
        if ancestor is None and lost:
            prepared.notify(f"learns all together, since that is not enough: {_said(lost)}")
            return attempt(prepared, "joint", ())
        return replace(
            candidate,
            theta=theta if ancestor is None else None,
            seconds=time.perf_counter() - started,
        )

    def _refitted(self, growth: Growth, array: Floats) -> Candidate:
        settings, workers = self.spec.growth, growth.workers
        before = references(self.lineage.parent, self.tasks)
        scores = {score.task: score for score in workers.evaluate(self.tasks, array)}
        lost = losses(before, list(scores.values()), settings.tolerance)
        if lost:
            growth.notify(f"learns again what lost: {_said(lost)}")
            again = [loss.task for loss in lost]
            config = tint_config(self.spec, self.base, settings.refit_rounds, new=False)
            workers.fit_tints(again, config, array)
            scores |= {score.task: score for score in workers.evaluate(again, array)}
            lost = losses(before, list(scores.values()), settings.tolerance)
        return replace(
            self.unchanged(),
            verdict=Verdict("tint", {}, lost),
            tints=workers.tints(),
            scores=scores,
            peak_memory=workers.peak_memory(),
        )

    def measure(self, context: Context, fitted: Candidate) -> Result:
        """What the guard went by is what is published."""
        for score in fitted.scores.values():
            context.run.measured(score)
        return self.result(fitted)


def plan_removal(lineage: Lineage, spec: JobSpec, base: SplitModel) -> Execution:
    """How these tasks are taken out.

    Where they came with a tint alone, the backbone stays. Where an ancestor has the backbone that
    is left, it is that one, and its tints, to the last bit. Otherwise the backbone is put together
    from base and task vectors without them, and tints that lose by it are learned again.

    Raises
    ------
    InputError
        If they were merged in a way that depends on all tasks.
    """
    parent, names = lineage.parent, lineage.change.names
    merged = [name for name in names if bool(parent.row(name).any())]
    if not merged:
        return executing(ExactRemoval(lineage, spec, base))
    if not sums_task_vectors(spec):
        method = spec.merge.init if spec.merge.learned else spec.merge.method
        raise InputError(
            f"{merged[0]} cannot be taken out of {parent.ref}: '{method}' merged it "
            "in a way that depends on all tasks; run the job again without it"
        )
    left = tuple(task.name for task in spec.tasks)
    ancestor = same_backbone(parent, names)
    if ancestor is None:
        return executing(RefittedRemoval(lineage, spec, base, left))
    lineage = replace(lineage, ancestor=ancestor)
    strays = tuple(name for name in left if name not in unchanged_since(ancestor, parent))
    if not strays:
        return executing(ExactRemoval(lineage, spec, base))
    return executing(RefittedRemoval(lineage, spec, base, strays))


def _notify_of_ancestor(context: Context, lineage: Lineage) -> None:
    if lineage.ancestor is not None:
        context.run.on_event(Notice(f"what is left is the backbone of {lineage.ancestor.ref}"))


def _said(lost: tuple[Loss, ...]) -> str:
    return "; ".join(map(str, lost))
