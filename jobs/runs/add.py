"""Add tasks to a merge, or refresh one: the cheapest way of growing that is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tintray.errors import CheckpointError, InputError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.backend import Backend
from tintray.jobs.engine.tint_worker import TintWorkerPool
from tintray.jobs.runs.change import part_of
from tintray.jobs.runs.growth_modes import Attempt, Child, Growth, attempt
from tintray.jobs.runs.guard import LADDER, Asked, Mode, Verdict, best, next_mode
from tintray.jobs.runs.outcome import Hosted, Result
from tintray.jobs.runs.parent import Parent, sums_task_vectors
from tintray.jobs.runs.pipeline import Context
from tintray.jobs.runs.records import on_prepared
from tintray.models.base_similarity import UNRELATED, is_unrelated
from tintray.storage.catalog.states import JobState


@dataclass(frozen=True)
class GrowthPlan(Child):
    """Add tasks to a merge, or refresh some of it."""

    mode: Asked

    @property
    def reasons(self) -> Mapping[JobState, str]:
        """What is said of each phase as it begins."""
        return {
            JobState.PLANNING: f"checking the experts of {', '.join(self.new)}",
            JobState.PREPARING: "self-labels: each new expert predicts its pool once",
            JobState.FITTING: f"{self.lineage.change} ({self.mode})",
        }

    def check(self, context: Context) -> Hosted[TintWorkerPool]:
        """Check the new experts by themselves.

        Experts of another base are refused: a merge that works is not put at risk for them.
        """
        return self.checked(context.backend)

    def checked(self, backend: Backend) -> Hosted[TintWorkerPool]:
        """The same, of a change that need not be a job yet."""
        part = part_of(self.spec, self.new).changed(tint={"learned": True})
        workers = TintWorkerPool(backend, part, self.base)
        facts = workers.check()
        for name, of_task in facts.items():
            if is_unrelated(of_task.base_similarity):
                raise CheckpointError(
                    f"tasks.{name}.expert was not fine-tuned from the base of this merge: the "
                    f"cosine between their weights is {of_task.base_similarity:.2f}, expected "
                    f"{UNRELATED:g} at least; give an expert of {self.spec.base}"
                )
        return Hosted(self.spec, self.base, facts, workers=workers)

    def prepare(self, context: Context, checked: Hosted[TintWorkerPool]) -> Growth:
        """Have self-labels and task vectors of the new tasks; refuse experts that guess."""
        workers = checked.workers
        prepared = workers.label(on_prepared(context.run, len(checked.facts), context.prepared))
        for task in self.spec.tasks:
            doubt = prepared[task.name].doubt if task.name in prepared else None
            if doubt is not None and doubt.unsure:
                raise CheckpointError(
                    f"tasks.{task.name}.expert: {task.expert} {doubt.said}; expected an expert "
                    "that was trained for this task, on inputs prepared as here"
                )
        base_blob = workers.base_blob(context.store)
        return Growth(self.lineage, self.spec, self.base, context, workers, base_blob)

    def fit(self, context: Context, prepared: Growth) -> Result:
        """Try the ways of growing from the cheapest on, until one is enough."""
        target, ladder = self.spec.growth.target, _ladder(self.spec)
        done: list[Attempt] = []
        while (mode := next_mode(self.mode, done, target, ladder)) is not None:
            if done:
                short = done[-1].short(target)
                prepared.notify(f"'{done[-1].mode}' is not enough: {short}; tries '{mode}'")
            done.append(attempt(prepared, mode, done))
        chosen = best(done, target) or done[-1]
        if said := _shortcoming(self.mode, chosen, done, target, ladder):
            context.run.remark(said)
        report = {
            "asked": self.mode,
            "mode": chosen.mode,
            "target": target,
            "agreement": dict(chosen.agreement),
            "attempts": [_attempt_record(tried, target) for tried in done],
        }
        peak = max(tried.result.peak_memory for tried in done)
        return replace(chosen.result, peak_memory=peak, losses=chosen.losses, report=report)


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
    gained = f", '{done[-1].mode}' has hardly gained" if len(done) < len(ladder) else ""
    return f"no way is enough{gained}; takes '{chosen.mode}': {chosen.short(target)}"


def _attempt_record(tried: Attempt, target: float) -> dict[str, Any]:
    return {
        "mode": tried.mode,
        "agreement": dict(tried.agreement),
        "short": tried.short(target),
        "losses": [loss.to_json() for loss in tried.losses],
        "abandoned": tried.abandoned,
        "seconds": tried.seconds,
    }
