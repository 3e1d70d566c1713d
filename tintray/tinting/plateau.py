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

    def reached(self, agreement: Sequence[float]) -> bool:
        """Whether the fit should stop after rounds with these mean agreements."""
        if len(agreement) < self.window:
            return False
        earlier = agreement[-self.window : -self.patience]
        return mean(list(agreement[-self.patience :])) - mean(list(earlier)) <= self.min_delta
