"""Which examples a round takes of each task: as many of all, or more of tasks that lag behind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import floor

Draw = tuple[int, int]
"""How many examples of a task were drawn before, and how many are now."""

START = 0.3
"""Agreement that a task is taken to have before any round has told."""
MEMORY = 0.9
"""What is kept of it from round to round: the last ten rounds or so count."""
LEAST = 4
"""Examples that every task gives: its agreement stays known, and its tint layer keeps moving."""


class Draws:
    """Decides what each task draws in a round (see ``tintray.numerics.randomness.drawn``).

    A task's share of a round grows as the square root of how much it disagrees with its expert, so
    that passes go where there is something left to learn; all rounds have as many examples in all.
    What it decides depends on what ``heard`` was told, and on nothing else.

    Parameters
    ----------
    tasks, batch_size
        Their names, and the examples of each in a round: exactly, or in the mean.
    lagging
        Whether tasks that lag give more.
    chosen
        Which tasks take part in a round; all of them without it.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        batch_size: int,
        *,
        lagging: bool = False,
        chosen: Callable[[int], Collection[str]] | None = None,
    ) -> None:
        self._batch_size, self._lagging, self._chosen = batch_size, lagging, chosen
        self._agreement = dict.fromkeys(tasks, START)
        self._taken = dict.fromkeys(tasks, 0)

    def of_round(self, round_: int) -> dict[str, Draw]:
        """What each task draws that takes part; rounds are asked for in order."""
        names = list(self._agreement)
        if self._chosen is not None:
            chosen = self._chosen(round_)
            names = [name for name in names if name in chosen]
        if not self._lagging:
            return dict.fromkeys(names, (round_ * self._batch_size, self._batch_size))
        sizes = shares([self._agreement[name] for name in names], self._batch_size)
        drawn = {name: (self._taken[name], n) for name, n in zip(names, sizes, strict=True)}
        self._taken |= {name: start + count for name, (start, count) in drawn.items()}
        return drawn

    def heard(self, agreement: Mapping[str, float]) -> None:
        """Take note of tasks' agreement with their experts over the last round."""
        for name, share in agreement.items():
            self._agreement[name] = MEMORY * self._agreement[name] + (1 - MEMORY) * share

    def state(self) -> dict[str, dict[str, float]]:
        """What a resumed fit needs, as JSON types."""
        return {"agreement": dict(self._agreement), "taken": dict(self._taken)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go back to what ``state`` returned."""
        self._agreement |= state["agreement"]
        self._taken |= {name: int(count) for name, count in state["taken"].items()}


def shares(agreement: Sequence[float], batch_size: int) -> list[int]:
    """Examples of each task in a round whose mean task gives ``batch_size``, at the most."""
    least = min(LEAST, batch_size)
    need = [max(0.0, 1 - share) ** 0.5 + 0.02 for share in agreement]
    free = len(need) * (batch_size - least) / sum(need)
    return [least + floor(free * of_task) for of_task in need]
