"""The ways of growing, from the cheapest on; each leaves a candidate and changes nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import Backend
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.engine.coordinator import Coordinator
from tintray.jobs.engine.tint_worker import TintConfig, Tinted, TintWorkerPool
from tintray.jobs.events import Notice
from tintray.jobs.runs.change import Change, part_of
from tintray.jobs.runs.guard import Loss, Mode, Verdict, hopeless, losses, references
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.parent import Parent
from tintray.jobs.runs.recomposition import without
from tintray.jobs.runs.run import artifacts, coordinator
from tintray.storage.artifacts.blobs import BlobRef, put_blob
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.tasks.evaluation import TaskScore
from tintray.vectors.coefficients import Coefficients


@dataclass(frozen=True)
class Candidate:
    """What a way of growing came to, not yet published.

    Attributes
    ----------
    theta
        The backbone [P]; None where it is the parent's.
    coefficients
        Λ [K, L] over the child's tasks.
    tints
        The private tensors of the tasks whose tint has changed.
    scores
        Of the tasks that were measured; others answer as before.
    kept
        Share of the last batches that the confidence filter kept, of the new tasks.
    """

    verdict: Verdict
    theta: Tensor | None
    coefficients: Tensor
    tints: Mapping[str, Mapping[str, Tensor]]
    scores: Mapping[str, TaskScore]
    kept: Mapping[str, float]
    seconds: float


@dataclass
class Growing:
    """A growth job once its new tasks are prepared.

    Attributes
    ----------
    spec
        The child's job.
    crew
        The new or refreshed tasks, by themselves.
    base
        The base's backbone tensors, as an artifact.
    """

    run: JobRun
    parent: Parent
    change: Change
    spec: JobSpec
    ground: SplitModel
    fleet: Backend
    crew: TintWorkerPool
    base: BlobRef
    facts: Mapping[str, TaskFacts]
    prepared: Mapping[str, Prepared]
    candidates: list[Candidate] = field(default_factory=list)
    peak_memory: int = 0  # bytes, of members that are gone

    @property
    def old(self) -> tuple[str, ...]:
        """The tasks that stay as they are asked for."""
        return tuple(task.name for task in self.spec.tasks if task.name not in self.change.names)

    def losses(self, after: Sequence[TaskScore]) -> tuple[Loss, ...]:
        """Which of them lose more than the tolerance."""
        return losses(references(self.parent, self.old), after, self.spec.growth.tolerance)

    def attempt(self, mode: Mode) -> Candidate:
        """Grow in this way; the candidate is kept, so that the next way can go on from it."""
        ways: Mapping[Mode, Callable[[Growing], Candidate]] = {
            "tint": attempt_tint,
            "coefficients": attempt_coefficients,
            "joint": attempt_joint,
        }
        found = ways[mode](self)
        self.candidates.append(found)
        return found

    # -- parts of the attempts -----------------------------------------------------------------

    def parent_backbone(self) -> Tensor:
        """θ [P] of the parent."""
        return self.ground.partition.layout.flatten(self.parent.merge.backbone)

    def start(self) -> Tensor:
        """Λ [K, L] of the child's tasks as the parent has it; zeros for those that it has not."""
        known = set(self.parent.merge.tasks)
        zeros = torch.zeros_like(self.parent.coefficients[0])
        return torch.stack(
            [self.parent.row(t.name) if t.name in known else zeros for t in self.spec.tasks]
        )

    def rows(self, names: Sequence[str]) -> list[int]:
        """Where tasks stand in Λ."""
        order = [task.name for task in self.spec.tasks]
        return [order.index(name) for name in names]

    def coordinator(
        self, crew: TintWorkerPool, coefficients: Coefficients, rounds: int
    ) -> Coordinator:
        """Who has moved these coefficients over so many rounds."""
        found = coordinator(self.spec, self.ground, self.fleet, crew, coefficients, rounds)
        found.fit(rounds, self.run.round_done)
        if found.rounds < rounds:
            self.tell(f"agreement stopped growing: ended after round {found.rounds}")
        return found

    def old_crew(self, names: Sequence[str]) -> TintWorkerPool:
        """Old tasks by themselves, checked and labelled, without their experts."""
        spec = part_of(self.spec, names)
        crew = TintWorkerPool(self.fleet, spec, self.ground, self.parent.kept(tuple(names)))
        crew.check()
        crew.label(self.own)
        return crew

    def dismiss(self) -> None:
        """End the new tasks' crew, so that others can use its CPUs."""
        self.peak_memory = max(self.peak_memory, self.crew.peak_memory())
        self.crew.dismiss()

    def own(self, prepared: Prepared) -> None:
        """Note what is needed of a task, so that nothing of it lies in the store unowned."""
        self.run.used(*artifacts(prepared))

    def tell(self, text: str) -> None:
        """Say something that the user should know."""
        self.run.on_event(Notice(text))

    def tell_reuse(self, tinted: Sequence[Tinted]) -> None:
        """Say which prefix activations were there, and note those that are by now."""
        whole = [found.task for found in tinted if not found.prefixed]
        if whole:
            self.tell(f"{', '.join(whole)}: no prefix to cache, every round runs the whole model")
        reused = [found.task for found in tinted if found.reused]
        if reused:
            self.tell(
                f"prefix activations of {len(reused)} of {len(tinted)} tasks were reused from the "
                "store"
            )
        known = [
            KnownArtifact(found.activations, "prefix-activations", {"task": found.task})
            for found in tinted
            if found.activations is not None
        ]
        self.run.catalog.artifacts.record(known)


def tint_order(spec: JobSpec, ground: SplitModel, rounds: int, *, new: bool) -> TintConfig:
    """How tint layers are learned under a backbone that stays: new ones, or old ones again."""
    batch_size = spec.growth.batch_size if new else spec.fit.batch_size
    warmup = round(spec.fit.warmup * rounds / spec.fit.rounds)
    return TintConfig(rounds, batch_size, ground.tint_lr(spec), spec.fit.schedule, new, warmup)


def attempt_tint(growing: Growing) -> Candidate:
    """Learn the new tasks' tint layers; the backbone and every old task stay, bit for bit.

    Nothing of an old task is loaded: the cost does not depend on how many there are.
    """
    started = time.perf_counter()
    names = growing.change.names
    theta = growing.parent_backbone()
    array: Floats = theta.numpy()
    order = tint_order(growing.spec, growing.ground, growing.spec.growth.rounds, new=True)
    tinted = growing.crew.fit_tints(names, order, array)
    growing.tell_reuse(tinted)
    agreement = {found.task: found.agreement or 0.0 for found in tinted}
    scores = growing.crew.evaluate(names, array)
    return Candidate(
        Verdict("tint", agreement, ()),
        None,
        growing.start(),
        growing.crew.tints(),
        {score.task: score for score in scores},
        {found.task: found.kept for found in tinted},
        time.perf_counter() - started,
    )


def attempt_coefficients(growing: Growing) -> Candidate:
    """Learn the new tasks' coefficients with their tints; then learn the old tints again.

    Where the first has gained next to nothing over a cheaper way, the second is not done.
    Old coefficients stay, so that the new tasks' vectors are all that is added to what is there:
    no old task vector is read. Under the new backbone, old tints go on from where they were.
    """
    started = time.perf_counter()
    names, settings = growing.change.names, growing.spec.growth
    crew = growing.crew
    crew.load(foundation(growing), growing.prepared)
    start = growing.start()
    learned = Coefficients(start[growing.rows(names)], growing.spec.merge.bounds)
    coordinator = growing.coordinator(crew, learned, settings.coefficient_rounds)
    array = coordinator.backbone().copy()
    start[growing.rows(names)] = learned.values
    agreement = crew.held_agreement(array)
    before = [candidate.verdict for candidate in growing.candidates]
    if hopeless([*before, Verdict("coefficients", agreement, ())], settings.target):
        growing.dismiss()
        abandoned = Verdict("coefficients", agreement, (), abandoned=True)
        seconds = time.perf_counter() - started
        return Candidate(abandoned, None, start, {}, {}, {}, seconds)
    scores, tints = crew.evaluate(names, array), crew.tints()
    growing.dismiss()
    lost: tuple[Loss, ...] = ()
    if growing.old:
        old = growing.old_crew(growing.old)
        order = tint_order(growing.spec, growing.ground, settings.refit_rounds, new=False)
        old.fit_tints(growing.old, order, array)
        after = old.evaluate(growing.old, array)
        lost = growing.losses(after)
        scores, tints = [*scores, *after], {**tints, **old.tints()}
        old.dismiss()
    return Candidate(
        Verdict("coefficients", agreement, lost),
        torch.from_numpy(array),
        start,
        tints,
        {score.task: score for score in scores},
        {name: coordinator.kept(name) for name in names},
        time.perf_counter() - started,
    )


def foundation(growing: Growing) -> BlobRef:
    """What the new tasks' vectors are added to: the parent's backbone, without older versions."""
    before = [name for name in growing.change.names if name in growing.parent.merge.tasks]
    if not any(growing.parent.row(name).any() for name in before):
        return growing.parent.backbone
    layout = growing.ground.partition.layout
    theta = without(growing.parent, layout, growing.base, before)
    return put_blob(growing.parent.store, tensors_as_bytes(layout.views(theta)))


def joint_base(growing: Growing) -> BlobRef:
    """What all task vectors are added to: the base, with what the parent learned to correct it."""
    if not growing.parent.manifest.corrected:
        return growing.base
    layout = growing.ground.partition.layout
    theta = without(growing.parent, layout, growing.base, growing.parent.merge.tasks)
    return put_blob(growing.parent.store, tensors_as_bytes(layout.views(theta)))


def attempt_joint(growing: Growing) -> Candidate:
    """Learn all coefficients and all tints, each from where it is; old tasks without experts."""
    started = time.perf_counter()
    settings, spec = growing.spec.growth, growing.spec
    kept = growing.parent.kept(growing.old)
    growing.dismiss()
    crew = TintWorkerPool(growing.fleet, spec, growing.ground, kept)
    crew.check()
    prepared = crew.label(growing.own)
    last = growing.candidates[-1] if growing.candidates else None
    if last is not None:
        crew.give_tints({name: last.tints[name] for name in growing.change.names})
    crew.load(joint_base(growing), prepared)
    coefficients = Coefficients(
        growing.start() if last is None else last.coefficients, spec.merge.bounds
    )
    coordinator = growing.coordinator(crew, coefficients, settings.coefficient_rounds)
    array = coordinator.backbone().copy()
    names = [task.name for task in spec.tasks]
    agreement = {
        name: share
        for name, share in crew.held_agreement(array).items()
        if name in growing.change.names
    }
    scores = crew.evaluate(names, array)
    lost = growing.losses(scores)
    tints = crew.tints()
    crew.dismiss()
    return Candidate(
        Verdict("joint", agreement, lost),
        torch.from_numpy(array),
        coefficients.values.clone(),
        tints,
        {score.task: score for score in scores},
        {name: coordinator.kept(name) for name in names},
        time.perf_counter() - started,
    )
