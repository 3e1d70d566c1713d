"""Self-labels that are asked for as a fit comes to them.

The order in which a fit draws from a pool is known beforehand; how much of it each task draws is
not, where tasks that lag give more. So the expert answers the beginning of that order, and goes on
when the fit gets to where its answers end. The order is cut into passes beforehand: an answer
never depends on when it was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tintray.numerics.choices import Precision
from tintray.numerics.randomness import drawn
from tintray.tasks.outputs import Outputs, concatenated

ENOUGH = 0.8
"""If so much of a pool is asked for, all of it is."""

LEAST = 256
"""Examples that an expert answers at once at least, where it has to be read for them."""


@dataclass(frozen=True)
class Asking:
    """What is asked of an expert at first, and how.

    Attributes
    ----------
    order
        Rows of the pool, int64 [N]: first those that are held back, then the others as a fit draws
        them. None: all of the pool, in its own order.
    held_back
        How many of ``order`` are.
    first
        How many of the others are asked for before the fit.
    """

    precision: Precision
    order: Tensor | None = None
    held_back: int = 0
    first: int = 0

    def digest(self, at_once: int) -> str:
        """Of the order, and of how it is cut into passes."""
        assert self.order is not None, "a whole pool has its own order"
        cut = f"{self.held_back} {at_once} ".encode()
        return hashlib.sha256(cut + self.order.numpy().tobytes()).hexdigest()


def asking(
    precision: Precision, learned: Tensor, held_back: Tensor, seed: int, task: str, first: int
) -> Asking:
    """What a fit asks of an expert: it draws ``first`` examples or more of the rows ``learned``."""
    total = len(learned) + len(held_back)
    if len(held_back) + first >= ENOUGH * total:
        return Asking(precision)
    order = torch.cat([held_back, learned[drawn(seed, task, 0, len(learned), len(learned))]])
    return Asking(precision, order, len(held_back), first)


class SelfLabels:
    """An expert's answers over a pool of N examples."""

    grown = False
    """Whether the expert was asked for more than the store has."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs

    @property
    def outputs(self) -> Outputs:
        """Those that are known."""
        return self._outputs

    @property
    def rows(self) -> Tensor | None:
        """The rows of the pool that ``outputs`` are of, int64 [n]; None for all, in order."""
        return None

    @property
    def first(self) -> tuple[Outputs, Tensor | None]:
        """Those that are asked for in any case, and their rows as above."""
        return self.outputs, None

    def at(self, rows: Tensor) -> Outputs:
        """The answers to the examples at ``rows``."""
        return self.outputs[rows]

    def all(self) -> Outputs:
        """The answers to the whole pool, in its order."""
        return self.outputs


class LabelsOnDemand(SelfLabels):
    """Those that were needed so far.

    Parameters
    ----------
    asking
        In which order they are asked for.
    at_once
        Examples of one pass.
    expert
        Reads the expert again; it is let go when it has answered.
    answers
        What an expert answers to the examples at some rows.
    known
        Its answers to the first examples of the order, to which more are added.
    """

    def __init__(
        self,
        asking: Asking,
        at_once: int,
        expert: Callable[[], nn.Module],
        answers: Callable[[nn.Module, Tensor], Outputs],
        known: Outputs | None = None,
    ) -> None:
        assert asking.order is not None, "an expert is asked for whole pools at once"
        self._asking, self._order, self._at_once = asking, asking.order, at_once
        self._expert, self._answers = expert, answers
        self._known = [] if known is None else [known]
        self._place = torch.argsort(self._order)  # of each row in the order

    @property
    def outputs(self) -> Outputs:
        """The answers to the first examples of the order."""
        if len(self._known) > 1:
            self._known = [concatenated(self._known)]
        return self._known[0]

    @property
    def rows(self) -> Tensor:
        """The rows that they are of."""
        return self._order[: self._count]

    @property
    def first(self) -> tuple[Outputs, Tensor]:
        """What a fit asks for before its first round, however much more is known."""
        count = self._asking.held_back + self._asking.first
        return self.outputs[slice(0, count)], self._order[:count]

    @property
    def _count(self) -> int:
        return sum(map(len, self._known))

    def at(self, rows: Tensor) -> Outputs:
        """The answers to the examples at ``rows``; the expert is read again for those missing."""
        places = self._place[rows]
        needed, learned = int(places.max()) + 1, self._count - self._asking.held_back
        if needed > self._count:
            self._ask(max(needed, self._count + max(LEAST, learned // 2)), self._expert)
        return self.outputs[places]

    def all(self) -> Outputs:
        """The answers to the whole pool: those that are missing are asked for."""
        return self.at(torch.arange(len(self._order)))

    def ask_first(self, expert: Callable[[], nn.Module]) -> bool:
        """Have those that are needed before the first round; whether any were missing."""
        return self._ask(self._asking.held_back + self._asking.first, expert)

    def _ask(self, count: int, expert: Callable[[], nn.Module]) -> bool:
        """Have the answers to the first ``count`` examples of the order, or to a few more."""
        stretches = list(self._missing(count))
        if stretches:
            module = expert()
            self._known += [self._answers(module, self._order[part]) for part in stretches]
            self.grown = True
        return bool(stretches)

    def _missing(self, count: int) -> Iterator[slice]:
        """What is to be asked for, in whole passes; none has both held-back and other examples."""
        held, size = self._asking.held_back, self._at_once
        total, start = len(self._order), self._count
        count = total if count >= ENOUGH * total else count
        for first, last in ((0, held), (held, total)):
            end = min(last, first + -(-(count - first) // size) * size)
            if max(start, first) < end:
                yield slice(max(start, first), end)


class DrawnLabels:
    """The answers to those examples of a pool that a task learns from, at ``rows`` of it."""

    def __init__(self, labels: SelfLabels, rows: Tensor) -> None:
        self._labels, self._rows = labels, rows

    def __getitem__(self, index: Tensor) -> Outputs:
        return self._labels.at(self._rows[index])

    @property
    def known(self) -> Outputs:
        """Those answers that are there, whatever they are of."""
        return self._labels.outputs
