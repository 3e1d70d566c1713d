"""When to stop a fit: its agreement with the experts has stopped growing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tintray.tasks.evaluation import mean


@dataclass(frozen=True)
class Plateau:
    """Agreement over the last rounds is no better than over as many rounds before them.

    A single round's agreement is mostly noise, hence two means over ``patience`` rounds each.

    Attributes
    ----------
    patience
        Rounds in each mean; a fit runs twice as many at least.
    min_delta
        By how much the later mean must exceed the earlier one for the fit to go on.
    """

    patience: int
    min_delta: float = 0.0

    @property
    def window(self) -> int:
        """How many rounds it looks back."""
        return 2 * self.patience

    def reached(self, curve: Sequence[tuple[int, float]]) -> bool:
        """Whether the fit should stop, by the mean agreements after some rounds, in order."""
        last = curve[-1][0] if curve else 0
        middle, first = last - self.patience, last - self.window
        later = [agreement for round_, agreement in curve if round_ > middle]
        earlier = [agreement for round_, agreement in curve if first < round_ <= middle]
        if first < 0 or not earlier:
            return False
        return mean(later) - mean(earlier) <= self.min_delta
