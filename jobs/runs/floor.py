"""What a fit must not fall below: the best merge that needs no learning.

Once the rounds are over, merging methods are tried on the examples that are held back, with every
expert's own head and no product of low rank. Which of them, and on how many examples, goes by an
estimate of operations, never by time: the result does not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tintray.errors import SpecError
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.best_state import BestState
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.methods import PreparedJob
from tintray.merging import Recipe, recipe
from tintray.merging.files.memory import check_memory
from tintray.merging.scale_search import climb
from tintray.numerics.layout import Layout
from tintray.tasks.evaluation import mean

SHARE = 0.1
"""Of a fit's operations that the search may take."""

LOOKS, MOST_LOOKS = 4, 8
"""Scales of a method that are tried at most; of task arithmetic, which has none of its own."""

LEAST_EXAMPLES = 16
"""Of each task, by which scales are compared; the best is measured on all that is watched."""

_SVD = 60
"""Operations of a decomposition of a matrix [m, n], over m·n·min(m, n), as processors do them."""

DECOMPOSITIONS: Mapping[str, Callable[[int], int]] = {
    "task_arithmetic": lambda tasks: 0,
    "iso_c": lambda tasks: 1,
    "tsv_m": lambda tasks: tasks + 2,
    "iso_cts": lambda tasks: tasks + 3,
    "ties": lambda tasks: 0,
}
"""The methods that are tried, in this order, and how often each decomposes a matrix."""


@dataclass(frozen=True)
class Start:
    """A merge that needs no learning, and its agreement with the experts where it was measured."""

    method: str
    scale: float
    theta: Floats  # [P]
    agreement: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The mean over tasks."""
        return mean(list(self.agreement.values()))

    def record(self, best: BestState, *, taken: bool) -> dict[str, Any]:
        """What a manifest says of it, beside what was learned."""
        learned = mean(list(best.agreement.values()))
        own = {"method": self.method, "scale": self.scale, "agreement": self.mean}
        return {**own, "learned": learned, "taken": taken}

    def __str__(self) -> str:
        if self.method == "task_arithmetic" and self.scale == 1 / len(self.agreement):
            return "the average of the experts"
        return f"{self.method.replace('_', ' ')} at scale {self.scale:.3g}"


@dataclass(frozen=True)
class Budget:
    """What the search may take: methods to try, and examples of each task by which they are."""

    methods: Sequence[str]
    examples: int


def plan_search(
    operations: float, of_example: float, layout: Layout, tasks: int, watched: int
) -> Budget:
    """What the search for a floor tries, within so many ``operations``.

    ``of_example`` are those of a pass one way; ``watched`` are the examples of each task by which
    the fit was judged. Task arithmetic, the average among it, is tried in any case.
    """
    left = operations - tasks * watched * of_example  # the best is measured on all of these
    each = LOOKS * tasks * of_example  # for one example of each task, of one method
    examples = int(left / 2 / (len(DECOMPOSITIONS) * each))
    examples = min(watched, max(LEAST_EXAMPLES, examples))
    methods: list[str] = []
    for name, count in DECOMPOSITIONS.items():
        cost = method_operations(layout, tasks, count(tasks)) + examples * each
        if cost <= left or not methods:
            methods.append(name)
            left -= cost
    return Budget(methods, examples)


def method_operations(layout: Layout, tasks: int, decompositions: int) -> float:
    """Operations of a method that reads every task vector and decomposes each matrix so often."""
    shapes = [slot.shape for slot in layout.slots if len(slot.shape) == 2]
    each = sum(_SVD * rows * columns * min(rows, columns) for rows, columns in shapes)
    return 2.0 * tasks * layout.numel + decompositions * each


def compare_with_start(
    job: PreparedJob, best: BestState, rounds: int, run: JobRun
) -> tuple[Start | None, bool]:
    """The best merge that needs no learning, and whether it agrees more than what was learned.

    Tints are then as it has them; else as they were learned, in so many ``rounds``.
    """
    start = best_start(job, best, rounds, run.stopper.check)
    learned = mean(list(best.agreement.values()))
    if start is None or start.mean <= learned:
        best.remember_learned()
        return start, False
    run.remark(
        f"what was learned agrees with the experts on {learned:.1%} of held-back examples and "
        f"{start} on {start.mean:.1%}: the latter is published, with tints as the experts have them"
    )
    return start, True


def best_start(
    job: PreparedJob, best: BestState, rounds: int, pause: Callable[[], None]
) -> Start | None:
    """The merge without learning that agrees most; tints are then as it has them.

    ``pause`` is called after each that was tried. None where the job's memory allows no method.
    """
    layout, tasks, watched = job.base.partition.layout, len(job.spec.tasks), best.watch.examples
    forward = mean([facts.operations or 2 * layout.numel for facts in job.facts.values()])
    fit = job.spec.fit
    per_round = fit.batch_size * min(fit.tasks_per_round or tasks, tasks)
    passes = 3.0 * rounds * per_round * forward
    held = max(facts.pool_examples for facts in job.facts.values())
    budget = plan_search(SHARE * passes, forward, layout, tasks, min(watched, held))
    parameters = job.base.partition.module.named_parameters()
    base = layout.flatten({name: tensor.detach() for name, tensor in parameters}).numpy()
    best.forget_learned()
    found: list[tuple[float, str, float, Floats]] = []
    for name in budget.methods:
        of = recipe(name, seed=fit.seed)
        if not _fits(of, job):
            continue
        direction = job.merged(of, 1.0, job.on_event, measured=False)[""]
        direction -= base

        def look(scale: float, direction: Floats = direction) -> float:
            agreement = best.agreement_under(_at(base, scale, direction), budget.examples)
            pause()
            return mean(list(agreement.values()))

        if name == "task_arithmetic":
            figures = climb(look, 1.0 / tasks, MOST_LOOKS)
        else:
            figures = climb(look, of.method.start(tasks), LOOKS)
        scale = max(figures, key=lambda known: figures[known])
        found.append((figures[scale], name, scale, _at(base, scale, direction)))
        found = [max(found, key=lambda known: known[0])]
    if not found:
        return None
    _, name, scale, theta = found[0]
    return Start(name, scale, theta, best.agreement_under(theta, watched))


def _at(base: Floats, scale: float, direction: Floats) -> Floats:
    """θ₀ + scale · D [P], in one array."""
    theta: Floats = np.float32(scale) * direction
    theta += base
    return theta


def _fits(of: Recipe, job: PreparedJob) -> bool:
    """Whether the memory of the job is enough for a method."""
    shapes = {slot.name: slot.shape for slot in job.base.partition.layout.slots}
    try:
        check_memory(of, shapes, len(job.spec.tasks), job.spec.merge.memory)
    except SpecError:
        return False
    return True
