"""Add tasks to a merge, or refresh one: the cheapest way of growing that is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tintray.errors import CheckpointError, InputError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.engine.tint_worker import TintWorkerPool
from tintray.jobs.runs.change import part_of
from tintray.jobs.runs.growth_modes import Attempt, Growth, attempt
from tintray.jobs.runs.guard import LADDER, Asked, Mode, Verdict, best, next_mode
from tintray.jobs.runs.outcome import Hosted, Lineage, Result
from tintray.jobs.runs.parent import Parent, sums_task_vectors
from tintray.jobs.runs.pipeline import Context
from tintray.jobs.runs.records import on_prepared
from tintray.models.base_similarity import UNRELATED, is_unrelated
from tintray.storage.catalog.states import JobState


@dataclass(frozen=True)
class Grown:
    """What was tried, and which of it is taken."""

    attempts: tuple[Attempt, ...]
    chosen: Attempt


@dataclass(frozen=True)
class GrowthPlan:
    """Add tasks to a merge, or refresh some of it; ``spec`` is the child's job."""

    lineage: Lineage
    spec: JobSpec
    base: SplitModel
    mode: Asked

    @property
    def reasons(self) -> Mapping[JobState, str]:
        """What is said of each phase as it begins."""
        change = self.lineage.change
        return {
            JobState.PLANNING: f"checking the experts of {', '.join(change.names)}",
            JobState.PREPARING: "self-labels: each new expert predicts its pool once",
            JobState.FITTING: f"{change} ({self.mode})",
        }

    def check(self, context: Context) -> Hosted[TintWorkerPool]:
        """Check the new experts by themselves, and that they come from this merge's base."""
        part = part_of(self.spec, self.lineage.change.names).changed(tint={"learned": True})
        workers = TintWorkerPool(context.backend, part, self.base)
        facts = workers.check()
        _check_similarity(facts, self.spec)
        return Hosted(self.spec, self.base, facts, workers=workers)

    def prepare(self, context: Context, checked: Hosted[TintWorkerPool]) -> Growth:
        """Have self-labels and task vectors of the new tasks."""
        workers = checked.workers
        prepared = workers.label(on_prepared(context.run, len(checked.facts)))
        _check_doubts(prepared, self.spec)
        base_blob = workers.base_blob(context.store)
        growth = (context, self.lineage, self.spec, self.base)
        return Growth(*growth, workers, base_blob, prepared)

    def fit(self, context: Context, prepared: Growth) -> Grown:
        """Try the ways of growing from the cheapest on, until one is enough."""
        target, ladder = self.spec.growth.target, _ladder(self.spec)
        attempts: list[Attempt] = []
        done: list[Verdict] = []
        while (mode := next_mode(self.mode, done, target, ladder)) is not None:
            if done:
                last = done[-1]
                prepared.notify(
                    f"'{last.mode}' is not enough: {last.short(target)}; tries '{mode}'"
                )
            attempts.append(attempt(prepared, mode, attempts))
            done.append(attempts[-1].verdict)
        chosen = best(done, target) or done[-1]
        if said := _shortcoming(self.mode, chosen, done, target, ladder):
            context.run.remark(said)
        return Grown(tuple(attempts), attempts[done.index(chosen)])

    def measure(self, context: Context, fitted: Grown) -> Result:
        """What was measured to choose a way is what is published."""
        verdict, result = fitted.chosen.verdict, fitted.chosen.result
        target = self.spec.growth.target
        for score in result.scores.values():
            context.run.measured(score)
        report = {
            "asked": self.mode,
            "mode": verdict.mode,
            "target": target,
            "agreement": dict(verdict.agreement),
            "attempts": [_attempt_record(tried, target) for tried in fitted.attempts],
        }
        peak = max(tried.result.peak_memory for tried in fitted.attempts)
        return replace(result, peak_memory=peak, losses=verdict.losses, report=report)


def check_mode(parent: Parent, asked: Asked) -> None:
    """Refuse a way of growing that is not open to a merge; ``InputError`` with the one that is."""
    if asked not in ("auto", *_ladder(parent.spec)):
        merge = parent.spec.merge
        raise InputError(
            f"--mode {asked} needs a merge that is a sum of task vectors; {parent.ref} was made by "
            f"'{merge.method}' from '{merge.init}': use --mode tint"
        )


def _ladder(spec: JobSpec) -> tuple[Mode, ...]:
    """The ways that are open: to a merge of another method, its backbone as it is."""
    return LADDER if sums_task_vectors(spec) else LADDER[:1]


def _check_similarity(facts: Mapping[str, TaskFacts], spec: JobSpec) -> None:
    """Refuse experts of another base: a merge that works is not put at risk for them."""
    for name, of_task in facts.items():
        if is_unrelated(of_task.base_similarity):
            raise CheckpointError(
                f"tasks.{name}.expert was not fine-tuned from the base of this merge: the cosine "
                f"between their weights is {of_task.base_similarity:.2f}, expected {UNRELATED:g} "
                f"at least; give an expert of {spec.base}"
            )


def _check_doubts(prepared: Mapping[str, Prepared], spec: JobSpec) -> None:
    """Refuse experts that are hardly surer than chance."""
    for task in spec.tasks:
        doubt = prepared[task.name].doubt if task.name in prepared else None
        if doubt is not None and doubt.unsure:
            raise CheckpointError(
                f"tasks.{task.name}.expert: {task.expert} {doubt.said}; expected an expert that "
                "was trained for this task, on inputs prepared as here"
            )


def _shortcoming(
    asked: Asked, chosen: Verdict, done: Sequence[Verdict], target: float, ladder: Sequence[Mode]
) -> str | None:
    """Why what is published is not enough, where it is not and harms nobody."""
    if chosen is not best(done, target) or not chosen.short(target):
        return None
    if asked != "auto":
        return (
            f"only the mode '{asked}' was tried, and it is not enough: {chosen.short(target)}; "
            "the mode 'auto' tries others too, and growth.target sets what is enough"
        )
    untried = [mode for mode in ladder if mode not in {verdict.mode for verdict in done}]
    gained = f", '{done[-1].mode}' has hardly gained" if untried else ""
    return f"no way is enough{gained}; takes '{chosen.mode}': {chosen.short(target)}"


def _attempt_record(tried: Attempt, target: float) -> dict[str, Any]:
    return {
        "mode": tried.verdict.mode,
        "agreement": dict(tried.verdict.agreement),
        "short": tried.verdict.short(target),
        "losses": [loss.record() for loss in tried.verdict.losses],
        "abandoned": tried.verdict.abandoned,
        "seconds": tried.seconds,
    }
