"""Take tasks out of a merge: their part of the backbone exactly, and nothing of them stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from tintray.errors import InputError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared
from tintray.jobs.events import Notice
from tintray.jobs.runs.growth_modes import (
    Attempt,
    Growth,
    attempt,
    begun,
    old_workers,
    rows_of,
    tint_config,
)
from tintray.jobs.runs.guard import Loss, Verdict, losses, references
from tintray.jobs.runs.outcome import Checked, Hosted, Lineage, Result
from tintray.jobs.runs.parent import sums_task_vectors, unchanged_since
from tintray.jobs.runs.pipeline import Context
from tintray.jobs.runs.recomposition import same_backbone, without
from tintray.storage.catalog.states import JobState
from tintray.tasks.evaluation import TaskScore


@dataclass(frozen=True)
class NothingToPrepare:
    """What is left is there already, to the last bit."""

    prepared: Mapping[str, Prepared] = field(default_factory=dict)


@dataclass(frozen=True)
class RemovalPlan:
    """Take tasks out of a merge; ``spec`` is the child's job.

    ``tasks`` get another backbone: they are measured, and learned again if they lose by it. There
    are none where the backbone that is left is the parent's or an ancestor's, with their tints.
    """

    lineage: Lineage
    spec: JobSpec
    base: SplitModel
    tasks: tuple[str, ...] = ()

    @property
    def reasons(self) -> Mapping[JobState, str]:
        """What is said of each phase as it begins."""
        return {
            JobState.PLANNING: f"removing {', '.join(self.lineage.change.names)}",
            JobState.PREPARING: "the tasks that are left are taken up without their experts",
            JobState.FITTING: "tints that the guard says need it",
        }

    def check(self, context: Context) -> Checked:
        """Check the data of the tasks that are measured."""
        if not self.tasks:
            return Checked(self.spec, self.base, {})
        workers = old_workers(context, self.lineage, self.spec, self.base, self.tasks)
        workers.check()
        return Hosted(self.spec, self.base, {}, workers=workers)

    def prepare(self, context: Context, checked: Checked) -> Growth | NothingToPrepare:
        """Take up their self-labels."""
        if not isinstance(checked, Hosted):
            return NothingToPrepare()
        base_blob = checked.workers.base_blob(context.store)
        known = (context, self.lineage, self.spec, self.base, checked.workers)
        growth = Growth(*known, base_blob, {})
        checked.workers.label(growth.use_artifacts)
        return growth

    def fit(self, context: Context, prepared: Growth | NothingToPrepare) -> Attempt:
        """Measure the tasks, learn those again that lose; and all together if it must be."""
        ancestor, change = self.lineage.ancestor, self.lineage.change
        if ancestor is not None:
            context.run.on_event(Notice(f"what is left is the backbone of {ancestor.ref}"))
        if not isinstance(prepared, Growth):
            return self._attempt((), {}, {}, 0)
        layout = self.base.partition.layout
        if ancestor is not None:
            return self._refitted(prepared, layout.flatten(ancestor.merge.backbone))
        theta = without(self.lineage.parent, layout, prepared.base_blob, change.names)
        found = self._refitted(prepared, theta)
        if not found.verdict.losses:
            return replace(found, result=replace(found.result, theta=theta))
        said = _said(found.verdict.losses)
        prepared.notify(f"learns all together, since that is not enough: {said}")
        return attempt(prepared, "joint", ())

    def _refitted(self, growth: Growth, theta: Tensor) -> Attempt:
        settings, workers, array = self.spec.growth, growth.workers, theta.numpy()
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
        return self._attempt(lost, workers.tints(), scores, workers.peak_memory())

    def _attempt(
        self,
        lost: tuple[Loss, ...],
        tints: Mapping[str, Mapping[str, Tensor]],
        scores: Mapping[str, TaskScore],
        peak_memory: int,
    ) -> Attempt:
        """What comes of it under a backbone that is there; coefficients stay as they are."""
        parent = self.lineage.parent
        rows = rows_of(parent.merge.tasks, parent.coefficients, self.spec)
        initial = begun(self.lineage, self.spec, rows)
        result = Result(None, rows, initial, tints, scores, {}, peak_memory)
        return Attempt(Verdict("tint", {}, lost), result)

    def measure(self, context: Context, fitted: Attempt) -> Result:
        """What the guard goes by is what is published."""
        verdict, result, ancestor = fitted.verdict, fitted.result, self.lineage.ancestor
        for score in result.scores.values():
            context.run.measured(score)
        report = {
            "mode": "exact" if result.theta is None else verdict.mode,
            "backbone_of": None if ancestor is None else str(ancestor.ref),
            "losses": [loss.record() for loss in verdict.losses],
        }
        return replace(result, losses=verdict.losses, report=report)


def plan_removal(lineage: Lineage, spec: JobSpec, base: SplitModel) -> RemovalPlan:
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
        return RemovalPlan(lineage, spec, base)
    if not sums_task_vectors(spec):
        method = spec.merge.init if spec.merge.learned else spec.merge.method
        raise InputError(
            f"{merged[0]} cannot be taken out of {parent.ref}: '{method}' merged it "
            "in a way that depends on all tasks; run the job again without it"
        )
    left = tuple(task.name for task in spec.tasks)
    ancestor = same_backbone(parent, names)
    if ancestor is None:
        return RemovalPlan(lineage, spec, base, left)
    lineage = replace(lineage, ancestor=ancestor)
    strays = tuple(name for name in left if name not in unchanged_since(ancestor, parent))
    return RemovalPlan(lineage, spec, base, strays)


def _said(lost: tuple[Loss, ...]) -> str:
    return "; ".join(map(str, lost))
