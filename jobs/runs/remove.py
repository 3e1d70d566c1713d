"""Take tasks out of a merge: their part of the backbone exactly, and nothing of them stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from tintray.errors import InputError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.events import Notice
from tintray.jobs.runs.growth_modes import Child, Growth, attempt, tint_config
from tintray.jobs.runs.outcome import Checked, Hosted, Lineage, Result
from tintray.jobs.runs.parent import sums_task_vectors, unchanged_since
from tintray.jobs.runs.pipeline import Context
from tintray.jobs.runs.recomposition import same_backbone, without
from tintray.storage.catalog.states import JobState


@dataclass(frozen=True)
class RemovalPlan(Child):
    """Take tasks out of a merge.

    ``tasks`` get another backbone: they are measured, and learned again if they lose by it. There
    are none where the backbone that is left is the parent's or an ancestor's, with their tints.
    """

    tasks: tuple[str, ...] = ()

    @property
    def reasons(self) -> Mapping[JobState, str]:
        """What is said of each phase as it begins."""
        return {
            JobState.PLANNING: f"removing {', '.join(self.new)}",
            JobState.PREPARING: "the tasks that are left are taken up without their experts",
            JobState.FITTING: "tints that the guard says need it",
        }

    def check(self, context: Context) -> Checked:
        """Check the data of the tasks that are measured."""
        if not self.tasks:
            return Checked(self.spec, self.base, {})
        workers = self.old_workers(context, self.tasks)
        workers.check()
        return Hosted(self.spec, self.base, {}, workers=workers)

    def prepare(self, context: Context, checked: Checked) -> Growth | None:
        """Take up their self-labels; None where what is left is there already, to the last bit."""
        if not isinstance(checked, Hosted):
            return None
        workers = checked.workers
        base_blob = workers.base_blob(context.store)
        growth = Growth(self.lineage, self.spec, self.base, context, workers, base_blob)
        growth.label(workers)
        return growth

    def fit(self, context: Context, prepared: Growth | None) -> Result:
        """Measure the tasks, learn those again that lose; and all together if it must be."""
        ancestor, mode = self.lineage.ancestor, "exact"
        if ancestor is not None:
            context.run.on_event(Notice(f"what is left is the backbone of {ancestor.ref}"))
        layout = self.base.partition.layout
        if prepared is None:
            result = self.result(None, self.start(), {}, (), {}, 0)
        elif ancestor is not None:
            result = self._refitted(prepared, layout.flatten(ancestor.merge.backbone))
        else:
            theta = without(self.parent, layout, prepared.base_blob, self.new)
            result, mode = replace(self._refitted(prepared, theta), theta=theta), "tint"
            if result.losses:
                said = "; ".join(map(str, result.losses))
                prepared.notify(f"learns all together, since that is not enough: {said}")
                joint = attempt(prepared, "joint", ())
                result, mode = replace(joint.result, losses=joint.losses), "joint"
        report = {
            "mode": mode,
            "backbone_of": None if ancestor is None else str(ancestor.ref),
            "losses": [loss.to_json() for loss in result.losses],
        }
        return replace(result, report=report)

    def _refitted(self, growth: Growth, theta: Tensor) -> Result:
        """What comes of it under a backbone that is there; coefficients stay as they are."""
        workers, array = growth.workers, theta.numpy()
        scores = {score.task: score for score in workers.evaluate(self.tasks, array)}
        lost = self.losses(self.tasks, list(scores.values()))
        if lost:
            growth.notify(f"learns again what lost: {'; '.join(map(str, lost))}")
            again = [loss.task for loss in lost]
            rounds = self.spec.growth.refit_rounds
            config = tint_config(self.spec, self.base, rounds, new=False)
            workers.fit_tints(again, config, array, growth.context.run.on_event)
            scores |= {score.task: score for score in workers.evaluate(again, array)}
            lost = self.losses(self.tasks, list(scores.values()))
        peak = workers.peak_memory()
        result = self.result(None, self.start(), workers.tints(), scores.values(), {}, peak)
        return replace(result, losses=lost)


def plan_removal(lineage: Lineage, spec: JobSpec, base: SplitModel) -> RemovalPlan:
    """How these tasks are taken out; ``spec`` is the child's job.

    Where they came with a tint alone, the backbone stays. Where an ancestor has the backbone that
    is left, it is that one, and its tints, to the last bit. Otherwise the backbone is put together
    from base and task vectors without them, and tints that lose by it are learned again.

    Raises InputError if they were merged in a way that depends on all tasks.
    """
    parent, names = lineage.parent, lineage.change.names
    merged = [name for name in names if parent.row(name).any()]
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
    strays = tuple(name for name in left if name not in unchanged_since(ancestor, parent))
    return RemovalPlan(replace(lineage, ancestor=ancestor), spec, base, strays)
