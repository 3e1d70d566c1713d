"""Settings found by short trials: a fit each, judged by agreement on held-back pool examples.

The search is deterministic and has no edges: from a start it moves along one axis after the other
for as long as that helps, until a whole turn helps no more or the trials are used up. So rivals get
the chance that tintray's own settings had, of which some forty such trials were made by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.quality.measure import Bench
from benchmarks.quality.zoos import Zoo

Point = tuple[int, ...]
"""A step on each axis; 0 is the start."""

ROUNDS = 60
TRIALS = 40


@dataclass(frozen=True)
class Axis:
    """Values of one field of the job file, by their distance from the start."""

    field: str
    start: float = 0.0
    factor: float = 1.0
    names: Sequence[str] = ()  # of a field that is no number, the start first

    def override(self, step: int) -> str | None:
        """The field at so many steps from the start; None if there is no such value."""
        if not self.names:
            value = self.start * self.factor**step
            return (
                f"{self.field}={np.format_float_positional(value, 3, fractional=False, trim='-')}"
            )
        return f"{self.field}={self.names[step]}" if 0 <= step < len(self.names) else None


RATES = (
    Axis("fit.tint_lr", 1e-2, 10**0.5),
    Axis("merge.scale", 0.3, 0.5),
    Axis("fit.coefficient_lr", 1e-2, 10**0.5),
    Axis("fit.schedule", names=("constant", "linear", "cosine")),
)
"""What the published loop can be tuned by, from what it was released with."""


def search(
    axes: Sequence[Axis], score: Callable[[tuple[str, ...]], float], most: int = TRIALS
) -> tuple[tuple[str, ...], int]:
    """The best settings found, and how many were tried; ``score`` is called once for each."""
    scores: dict[Point, float] = {}

    def known(point: Point) -> float | None:
        """The score of a point; None if there is no such point, or no trial left for it."""
        found = settings(axes, point)
        if point not in scores and (found is None or len(scores) >= most):
            return None
        if point not in scores and found is not None:
            scores[point] = score(found)
        return scores[point]

    best = (0,) * len(axes)
    known(best)
    turned = None
    while turned != best:
        turned = best
        for axis in range(len(axes)):
            best = _along(axis, best, known)
    found = settings(axes, best)
    assert found is not None
    return found, len(scores)


def _along(axis: int, best: Point, known: Callable[[Point], float | None]) -> Point:
    """The best point that steps to one side and, if none helps, to the other lead to."""
    for side in (1, -1):
        start = best
        while (step := known((*best[:axis], best[axis] + side, *best[axis + 1 :]))) is not None:
            if step <= (known(best) or 0.0):
                break
            best = (*best[:axis], best[axis] + side, *best[axis + 1 :])
        if best != start:
            break
    return best


def settings(axes: Sequence[Axis], point: Point) -> tuple[str, ...] | None:
    """The overrides at a point; None where an axis has no such value."""
    found = [axis.override(step) for axis, step in zip(axes, point, strict=True)]
    known = [text for text in found if text is not None]
    return tuple(known) if len(known) == len(found) else None


def tuned(
    bench: Bench, zoo: Zoo, settled: Sequence[str], axes: Sequence[Axis] = RATES, most: int = TRIALS
) -> tuple[tuple[str, ...], int]:
    """The settings, beside those that are settled, that agree best with the experts on pools."""

    def agreement(found: tuple[str, ...]) -> float:
        overrides = (*settled, *found, f"fit.rounds={ROUNDS}")
        agreed = bench.run(zoo, overrides, trial=True).agreed
        print(f"    {' '.join(found)}: {100 * agreed:.1f} %", flush=True)
        return agreed

    return search(axes, agreement, most)
