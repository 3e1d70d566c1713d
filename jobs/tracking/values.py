"""What a tracker is told, from a job's events and its manifest: parameters, curves, figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tintray.jobs.events import Event, PhaseStarted, RoundDone, TintLearned
from tintray.published.manifest import Manifest
from tintray.tasks.evaluation import mean


@dataclass(frozen=True)
class Value:
    """One figure of a job."""

    step: int  # the round after which it was measured, counted over all fits of the job
    name: str
    value: float


@dataclass
class Curves:
    """The curves of a job, event by event.

    A job that goes on after a failure tells rounds again, to the same figures: each is told once.
    One that grows may fit several times: the rounds of a later fit come after those before.
    """

    last: int = 0
    """The last step that was told."""
    _before: int = 0  # rounds of fits that are over
    _round: int = 0

    def take(self, event: Event) -> list[Value]:
        """What an event adds to the curves."""
        match event:
            case PhaseStarted():
                self._before = self._round = 0
            case TintLearned() if event.agreement is not None:
                return [Value(self.last, f"tint/{event.task}", event.agreement)]
            case RoundDone():
                if event.round <= self._round:
                    self._before += self._round
                self._round = event.round
                step = self._before + event.round
                if step > self.last:
                    self.last = step
                    return [Value(step, name, value) for name, value in _of_round(event)]
        return []


def _of_round(event: RoundDone) -> Iterator[tuple[str, float]]:
    yield "loss", event.loss
    yield "seconds", event.seconds
    yield "selected_fraction", mean(list(event.selected_fraction.values()))
    for name, shares in (("agreement", event.agreement), ("held_back", event.held_back)):
        if shares:
            yield name, mean(list(shares.values()))
            yield from ((f"{name}/{task}", share) for task, share in shares.items())


def parameters(job: Mapping[str, Any]) -> dict[str, str]:
    """A recorded job as names and texts: ``fit.rounds`` is ``"300"``; of tasks, their names."""
    tasks = [task["name"] for task in job["tasks"]]
    flat = {**job, "tasks": f"{len(tasks)}: {', '.join(tasks)}"}
    return {name: str(value) for name, value in _flat(flat, "") if value is not None}


def _flat(section: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def figures(manifest: Manifest) -> dict[str, float]:
    """What a published merge was measured to be, as names and numbers."""
    means = manifest.metrics
    found: dict[str, float | None] = {
        "merge/average": means.average,
        "merge/expert_average": means.expert_average,
        "merge/normalised_accuracy": means.normalised_accuracy,
        "merge/agreement": means.agreement,
    }
    for task in manifest.tasks:
        score = task.task_score
        found |= {
            f"tasks/{task.name}/{score.metric}": score.merged,
            f"tasks/{task.name}/{score.metric}_of_expert": score.expert,
            f"tasks/{task.name}/agreement": score.agreement,
            f"tasks/{task.name}/normalised": score.normalised,
            f"tasks/{task.name}/tint_parameters": task.tint_parameters,
        }
    found |= {f"seconds_of/{phase}": seconds for phase, seconds in manifest.seconds.items()}
    found["peak_memory_mib"] = manifest.peak_memory_mib
    return {name: float(value) for name, value in found.items() if value is not None}
