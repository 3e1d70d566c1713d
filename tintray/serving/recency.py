"""What is kept in memory up to a budget; what was used longest ago gives way."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tintray.limits import memory_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """How much is kept: so many bytes, or so many tasks; None for all."""

    size: int | None = None
    count: int | None = None

    @classmethod
    def read(cls, value: int | str | None) -> Budget:
        """``20`` or ``"20"``, a number of tasks; ``"64MiB"``, an amount of memory; None for all.

        Raises ValueError: it is neither, or less than one task.
        """
        if value is None:
            return cls()
        if re.fullmatch(r"[1-9][0-9]{0,8}", str(value)):
            return cls(count=int(value))
        try:
            return cls(size=memory_bytes(value))
        except ValueError:
            raise ValueError(
                "expected an amount of memory such as 64MiB, or a number of tasks such as 20, "
                f"found {value!r:.40}"
            ) from None

    def exceeded_by(self, size: int, count: int) -> bool:
        """Whether so many bytes, of so many tasks, are too many."""
        return size > (size if self.size is None else self.size) or count > (
            count if self.count is None else self.count
        )


class Recency(Generic[T]):
    """Values by name, fetched on first use.

    ``fetch`` gives a value by its name, ``measure`` the bytes that it takes. One thread at a time.
    """

    def __init__(
        self, fetch: Callable[[str], T], measure: Callable[[T], int], budget: Budget
    ) -> None:
        self._fetch, self._measure, self._budget = fetch, measure, budget
        self._kept: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self.size, self.hits, self.misses = 0, 0, 0

    def __len__(self) -> int:
        return len(self._kept)

    def portions(self, names: Sequence[str]) -> Iterator[dict[str, T]]:
        """The values of different names, in portions that are within the budget at once.

        A portion has one value at least, however large. Those of the last portion may be gone when
        the next one is asked for.
        """
        portion: dict[str, T] = {}
        taken = 0
        for name in names:
            value, size = self._take(name, portion)
            if portion and self._budget.exceeded_by(taken + size, len(portion) + 1):
                yield portion
                portion, taken = {}, 0
            portion[name] = value
            taken += size
            self._shrink(portion)
        if portion:
            yield portion

    def _take(self, name: str, held: dict[str, T]) -> tuple[T, int]:
        if name in self._kept:
            self.hits += 1
            self._kept.move_to_end(name)
            return self._kept[name]
        self.misses += 1
        value = self._fetch(name)
        self._kept[name] = (value, self._measure(value))
        self.size += self._kept[name][1]
        return self._kept[name]

    def _shrink(self, held: dict[str, T]) -> None:
        """Let go of what was used longest ago, but of nothing that is in use."""
        while self._budget.exceeded_by(self.size, len(self._kept)):
            oldest = next((name for name in self._kept if name not in held), None)
            if oldest is None:
                return
            self.size -= self._kept.pop(oldest)[1]
