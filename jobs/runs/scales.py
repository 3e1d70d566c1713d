"""At which scale a merge agrees best with its experts: a search that has no edge."""

from __future__ import annotations

from collections.abc import Callable

STEP = 2**0.5
_AROUND = 4  # steps to each side that are always tried: a quarter to four times
_FURTHEST = 20  # steps to each side at most: a thousandth to a thousand times


def best_scale(agreement: Callable[[float], float], middle: float) -> float:
    """The scale with the highest agreement; of equal ones, the nearest to ``middle``.

    Scales are tried around ``middle``, each √2 times the one before; as long as the best is the
    lowest or the highest of them, another one follows there.
    """
    found = {step: agreement(middle * STEP**step) for step in range(-_AROUND, _AROUND + 1)}
    while True:
        best = max(found, key=lambda step: (found[step], -abs(step)))
        lowest, highest = min(found), max(found)
        if lowest < best < highest or abs(best) == _FURTHEST:
            return float(middle * STEP**best)
        beyond = best + (1 if best == highest else -1)
        found[beyond] = agreement(middle * STEP**beyond)
