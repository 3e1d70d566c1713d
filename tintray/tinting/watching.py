"""When a fit looks at held-back agreement and on how many examples: it costs so much, no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 0.05
"""Of a fit's passes, there and back, that watching may take; a pass one way is a third of one."""

MOST_WATCHES = 8
LEAST_EXAMPLES = 32
"""Of each task: fewer would tell nothing, however short the fit is."""


@dataclass(frozen=True)
class Watch:
    """After which rounds held-back agreement is measured, on so many examples of each task."""

    rounds: frozenset[int]
    examples: int

    def due(self, round_: int, last: int) -> bool:
        """Whether it is measured after a round, 1-based, of a fit that ends with ``last``."""
        return round_ in self.rounds or round_ == last


def plan_watch(
    rounds: int, per_round: int, held_back: Sequence[int], window: int | None = None
) -> Watch:
    """The watch of a fit that learns from ``per_round`` examples in each of its ``rounds``.

    ``held_back`` has the examples of each task that can be looked at. The last round is always
    watched, and before it as many as ``SHARE`` pays for, in the second half alone. A fit that may
    end early is watched from its beginning on, once at least in every ``window`` of rounds.
    """
    affordable = SHARE * 3 * per_round  # for each round, in examples
    examples = max(LEAST_EXAMPLES, int(affordable * rounds / len(held_back)))
    cost = sum(min(examples, count) for count in held_back)
    if window is not None:
        step = min(window, max(1, -(-cost // max(1, int(affordable)))))
        return Watch(frozenset(range(step, rounds + 1, step)), examples)
    count = min(MOST_WATCHES, max(1, int(affordable * rounds / cost)))
    each = frozenset(rounds - rounds // 2 * number // count for number in range(count))
    return Watch(each, examples)
