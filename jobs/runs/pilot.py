"""A rehearsal of a job: few tasks, few rounds, part of the pools, in a store that is deleted."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.config.task_sections import TaskSpec
from tintray.jobs.events import Event, OnEvent, RoundDone
from tintray.jobs.records import Record
from tintray.jobs.runs.run import run_job

PILOT_TASKS, PILOT_ROUNDS, PILOT_EXAMPLES = 4, 40, 512


@dataclass(frozen=True)
class PilotReport(Record):
    """A rehearsal: few tasks, few rounds, part of the pools; and what it makes one expect."""

    tasks: Sequence[str]
    rounds: int
    examples: int  # of each pool, at most
    seconds: float  # what it took
    agreement: float  # mean over tasks, at its end
    normalised_accuracy: float | None
    expected_agreement: float  # of these tasks, after all rounds of the job
    expected_seconds: float  # of the whole job: all tasks, rounds and examples


def rehearse(spec: JobSpec, planned: float, step: float, on_event: OnEvent) -> PilotReport:
    """Run a few tasks of a job for a few rounds on part of their pools, and extrapolate.

    ``planned`` are the seconds that the whole job was estimated to take, ``step`` those of one
    example; the rehearsal corrects them by what its rounds took.

    The tasks are spread over the job. Agreement is extrapolated by its trend over the logarithm of
    the round, which is how it grows once the first rounds are over.
    """
    count = min(len(spec.tasks), PILOT_TASKS)
    tasks = [spec.tasks[len(spec.tasks) * index // count] for index in range(count)]
    rounds = min(spec.fit.rounds, PILOT_ROUNDS)
    seen: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, RoundDone):
            seen.append(float(np.mean(list(event.agreement.values()))))
        on_event(event)

    with TemporaryDirectory(prefix="tintray-pilot-") as name:
        folder = Path(name)
        small = _small(spec, tasks, rounds, folder)
        began = time.perf_counter()
        manifest = run_job(small, hear)
        took = time.perf_counter() - began
    metrics = manifest.metrics
    passed = rounds * len(tasks) * spec.fit.batch_size  # examples
    fitted = manifest.seconds.get("fitting", 0.0)
    slower = max(1.0, fitted / (passed * step)) if passed and step else 1.0
    known = any(task.test is not None for task in tasks)
    return PilotReport(
        tasks=[task.name for task in tasks],
        rounds=rounds,
        examples=PILOT_EXAMPLES,
        seconds=took,
        agreement=metrics.agreement,
        normalised_accuracy=metrics.normalised_accuracy if known else None,
        expected_agreement=expected_agreement(seen, metrics.agreement, spec.fit.rounds),
        expected_seconds=planned * slower,
    )


def expected_agreement(seen: Sequence[float], reached: float, rounds: int) -> float:
    """Agreement after ``rounds`` rounds, from its trend over log(round); at least what it is now.

    ``seen`` is that of each round so far, on its batches; ``reached`` was measured at their end.
    """
    count = len(seen)
    if count < 4 or rounds <= count:
        return reached
    late = np.arange(count // 2, count)
    slope = float(np.polyfit(np.log(late + 1.0), np.asarray(seen)[late], 1)[0])
    return min(1.0, reached + max(0.0, slope) * math.log(rounds / count))


def _small(spec: JobSpec, tasks: Sequence[TaskSpec], rounds: int, folder: Path) -> JobSpec:
    """The job of a rehearsal, in this process, with store and catalog in ``folder``."""
    cut = []
    for task in tasks:
        data = {"pool": task.pool, "test": task.test}
        changed = {
            part: {"split": f"{of.split}[:{PILOT_EXAMPLES}]"}
            for part, of in data.items()
            if of is not None and "[" not in of.split  # a slice is what its author wants
        }
        cut.append(task.changed(**changed))
    fit = {
        "rounds": rounds,
        "warmup": min(spec.fit.warmup, rounds - 1),
        "groups": None,
        "floor": False,
    }
    return spec.here().changed(
        tasks=cut,
        fit=fit,
        tracking=None,
        store=Location(str(folder / "store")),
        catalog=Location(f"sqlite:///{folder}/catalog.db"),
    )
