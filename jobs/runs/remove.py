"""Take tasks out of a merge: their part of the backbone exactly, and nothing of them stays."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from tintray.errors import InputError, NotFoundError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.arrays import Floats, peak_memory
from tintray.jobs.engine.backend import Backend
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.tint_worker import TintWorkerPool
from tintray.jobs.events import Notice
from tintray.jobs.runs.change import Change, part_of
from tintray.jobs.runs.child import Child, unchanged_since
from tintray.jobs.runs.growth_modes import Candidate, Growing, attempt_joint, tint_order
from tintray.jobs.runs.guard import Loss, Verdict, losses, references
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.parent import Parent, sums_task_vectors
from tintray.jobs.runs.recomposition import same_backbone, without
from tintray.jobs.runs.run import artifacts
from tintray.storage.artifacts.cache import lookup
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.states import JobState
from tintray.tasks.evaluation import TaskScore


def remove_tasks(
    run: JobRun, parent: Parent, change: Change, spec: JobSpec, ground: SplitModel, fleet: Backend
) -> Child:
    """The child without these tasks.

    Where they came with a tint alone, the backbone stays. Where an ancestor has the backbone that
    is left, it is that one, and its tints, to the last bit. Otherwise the backbone is put together
    from base and task vectors without them, and tints that lose by it are learned again.
    """
    with run.phase(JobState.PLANNING, f"removing {', '.join(change.names)}"):
        merged = [name for name in change.names if bool(parent.row(name).any())]
        if merged and not sums_task_vectors(spec):
            method = spec.merge.init if spec.merge.learned else spec.merge.method
            raise InputError(
                f"{merged[0]} cannot be taken out of {parent.ref}: '{method}' merged it "
                "in a way that depends on all tasks; run the job again without it"
            )
        ancestor = same_backbone(parent, change.names) if merged else None
    with run.phase(JobState.FITTING, "tints that the guard says need it"):
        if not merged:
            return _child(parent, change, spec, ground, _unchanged(parent, spec))
        removal = Removal(run, parent, change, spec, ground, fleet)
        if ancestor is not None:
            run.on_event(Notice(f"what is left is the backbone of {ancestor.ref}"))
            candidate = removal.restored(ancestor)
        else:
            candidate = removal.recomposed()
    return _child(parent, change, spec, ground, candidate, ancestor)


def _unchanged(parent: Parent, spec: JobSpec) -> Candidate:
    rows = torch.stack([parent.row(task.name) for task in spec.tasks])
    return Candidate(Verdict("tint", {}, ()), None, rows, {}, {}, {}, 0.0)


@dataclass(frozen=True)
class Removal:
    """Tasks are being taken out of a backbone that they have a part in."""

    run: JobRun
    parent: Parent
    change: Change
    spec: JobSpec
    ground: SplitModel
    fleet: Backend

    def restored(self, ancestor: Parent) -> Candidate:
        """An ancestor's backbone and tints; tasks that it has not are measured, and learned."""
        same = unchanged_since(ancestor, self.parent)
        strays = tuple(task.name for task in self.spec.tasks if task.name not in same)
        unchanged = _unchanged(self.parent, self.spec)
        if not strays:
            return unchanged
        array = self.ground.partition.layout.flatten(ancestor.merge.backbone).numpy()
        crew, scores, lost = self.refitted(strays, array)
        return replace(
            unchanged,
            verdict=Verdict("tint", {}, lost),
            tints=crew.tints(),
            scores={score.task: score for score in scores},
        )

    def recomposed(self) -> Candidate:
        """Subtract, measure, learn what lost; and all together if that is not enough."""
        started = time.perf_counter()
        parent, ground = self.parent, self.ground
        found = lookup(parent.store, "bases", ground.digest)
        if found is None:
            raise NotFoundError(
                f"the base's tensors of {parent.ref} are gone from {parent.store.url}; copy them "
                "back, or run the job again without the task"
            )
        self.run.used(KnownArtifact(found.ref, "base", {"model": ground.digest}))
        layout = ground.partition.layout
        array = without(parent, layout, found.ref, self.change.names).numpy()
        left = tuple(task.name for task in self.spec.tasks)
        crew, scores, lost = self.refitted(left, array)
        if lost:
            self.tell(f"learns all together, since that is not enough: {_said(lost)}")
            growing = Growing(
                *(self.run, parent, self.change, self.spec, ground, self.fleet, crew, found.ref),
                facts={},
                prepared={},
            )
            return attempt_joint(growing)
        return replace(
            _unchanged(parent, self.spec),
            theta=torch.from_numpy(array),
            tints=crew.tints(),
            scores={score.task: score for score in scores},
            seconds=time.perf_counter() - started,
        )

    def refitted(
        self, names: tuple[str, ...], array: Floats
    ) -> tuple[TintWorkerPool, list[TaskScore], tuple[Loss, ...]]:
        """Measure tasks under θ [P], and learn those again that lose by it."""
        settings = self.spec.growth
        kept = self.parent.kept(names)
        crew = TintWorkerPool(self.fleet, part_of(self.spec, names), self.ground, kept)
        crew.check()
        crew.label(lambda prepared: self.run.used(*artifacts(prepared)))
        before = references(self.parent, names)
        scores = crew.evaluate(names, array)
        lost = losses(before, scores, settings.tolerance)
        if not lost:
            return crew, scores, lost
        self.tell(f"learns again what lost: {_said(lost)}")
        again = [loss.task for loss in lost]
        crew.fit_tints(
            again, tint_order(self.spec, self.ground, settings.refit_rounds, new=False), array
        )
        better = {score.task: score for score in crew.evaluate(again, array)}
        scores = [better.get(score.task, score) for score in scores]
        return crew, scores, losses(before, scores, settings.tolerance)

    def tell(self, text: str) -> None:
        """Say something that the user should know."""
        self.run.on_event(Notice(text))


def _said(lost: tuple[Loss, ...]) -> str:
    return "; ".join(map(str, lost))


def _child(
    parent: Parent,
    change: Change,
    spec: JobSpec,
    ground: SplitModel,
    candidate: Candidate,
    ancestor: Parent | None = None,
) -> Child:
    scores: dict[str, TaskScore] = dict(candidate.scores)
    return Child(
        parent=parent,
        spec=spec,
        ground=ground,
        change=change,
        theta=candidate.theta,
        coefficients=candidate.coefficients,
        tints=candidate.tints,
        scores=scores,
        new={},
        kept=candidate.kept,
        losses=candidate.verdict.losses,
        peak_memory=peak_memory(),
        report={
            "mode": candidate.verdict.mode if candidate.theta is not None else "exact",
            "backbone_of": None if ancestor is None else str(ancestor.ref),
            "losses": [loss.record() for loss in candidate.verdict.losses],
        },
        ancestor=ancestor,
    )
