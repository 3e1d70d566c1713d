"""What every form of data gives: columns by name, and the rows of one that are asked for."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tintray.data.source import DataSource


class Table(ABC):
    """A split of a data set on this machine."""

    def __init__(self, source: DataSource, role: str) -> None:
        self.source, self.role, self.path = source, role, Path(source.path)
        self.shown: Mapping[str, str] = {}  # how messages call a column, where not by its name

    @cached_property
    def columns(self) -> list[str]:
        """Their names."""
        raise NotImplementedError

    @cached_property
    def rows(self) -> int:
        """How many rows the split has, or at least as many of the first as the source can mean."""
        raise NotImplementedError

    @cached_property
    def class_names(self) -> list[str] | None:
        """Names of the classes, in the order of their numbers; None where the data do not say."""
        return None

    @abstractmethod
    def take(self, column: str, rows: Sequence[int] | NDArray[Any]) -> Any:
        """The values of a column at ``rows``: an array or a list.

        DataError is raised if they cannot be read, or take more memory than the limits allow.
        """

    def name(self, column: str) -> str:
        """How messages call a column."""
        return self.shown.get(column, column)

    def check_bytes(self, count: int, what: str) -> None:
        """Raise DataError if ``what`` takes more memory than the budget."""
        self.source.check_bytes(count, f"{self.role}: {what} in {self.source.path}")


def memory_of(value: Any) -> int:
    """Bytes of a value in memory, with all that it holds."""
    total, left = 0, [value]
    while left:
        one = left.pop()
        total += sys.getsizeof(one)
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list):
            left += one
    return total
