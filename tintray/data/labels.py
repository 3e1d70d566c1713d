"""Labels of a split: read apart from the inputs, checked against what the expert answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tintray.data.images import decode
from tintray.data.source import LABEL, DataSource
from tintray.data.tables import open_table
from tintray.errors import DataError, nearest

IGNORED = -100
"""The label of what does not count, as in torch's cross-entropy."""

_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Answers:
    """What an expert's head answers with: how many outputs, and the names of the classes."""

    width: int
    names: Mapping[str, int] = field(default_factory=dict)


def class_names(source: DataSource, role: str) -> list[str] | None:
    """Names of the classes, in the order of their numbers; None where the data do not say."""
    return open_table(source, role).class_names


def check_class_names(names: Sequence[str] | None, width: int, where: str) -> None:
    """Raise DataError for data that name another number of classes than the head answers."""
    if names and len(names) != width:
        raise DataError(
            f"{where} names {len(names)} classes, and the expert's head has {width}; expected as "
            "many, is this the data of another task?"
        )


def open_labels(
    source: DataSource, rows: Sequence[int] | NDArray[Any], answers: Answers, role: str
) -> LabelColumn:
    """The column of labels of a split, at ``rows``.

    Raises DataError if there is none, or it has fewer rows, or cannot be read.
    """
    table = open_table(source, role)
    column = source.column(LABEL, table.columns, role)
    if column is None:
        wanted = f" (array 'y_{source.split_name}')" if table.shown else ""
        raise DataError(
            f"{role}: {source.path} has no column of labels{wanted}; it has "
            f"{', '.join(table.name(name) for name in table.columns)}, "
            "expected one called label, or its name under 'columns: {label: …}'"
        )
    where = f"{role}: '{table.name(column)}' in {source.path}"
    if len(rows) and max(rows) >= table.rows:
        raise DataError(
            f"{where} holds {table.rows:,} labels; expected one for each of the examples, up to "
            f"row {max(rows) + 1:,}"
        )
    return LabelColumn(table.take(column, rows), answers, source, where, table.class_names)


@dataclass(frozen=True)
class LabelColumn:
    """The labels of N examples as a file holds them; DataError is raised for what does not fit."""

    values: Any  # an array, or a list of numbers, names, lists or images
    answers: Answers
    source: DataSource
    where: str  # how messages call the column
    # of the data set, in the order of their numbers; None where it does not say
    class_names: list[str] | None

    def classes(self) -> Tensor:
        """One class for each example, int64 [N]."""
        if isinstance(self.values, np.ndarray):
            self._check_array(self.values, "one integer label for each example", "iuU", (1,))
        values = self._by_name(self.values)
        return torch.tensor([self.index(value) for value in values], dtype=torch.int64)

    def tags(self) -> list[Tensor]:
        """A list of classes for each example, int64 [words]."""
        for row in self.values:
            if not isinstance(row, list | tuple | np.ndarray):
                raise DataError(f"{self.where} holds {row!r:.40}; expected a list of tags")
        named = iter(self._by_name([value for row in self.values for value in row]))
        numbers = [[self.index(next(named)) for _ in row] for row in self.values]
        return [torch.tensor(row, dtype=torch.int64) for row in numbers]

    def index(self, value: Any) -> int:
        """A class, given by number or by name."""
        names = self.answers.names
        if isinstance(value, str) and value in names:
            value = names[value]
        elif isinstance(value, str) and _NUMBER.fullmatch(value):
            value = int(value)
        elif isinstance(value, str) and names:
            raise DataError(
                f"{self.where} holds {value!r}, which is no class of the expert's head"
                f"{nearest(value, names)}; it has {', '.join(list(names)[:8])}"
            )
        if isinstance(value, bool | float | str) or not isinstance(value, int | np.integer):
            raise DataError(
                f"{self.where} holds {value!r:.40}; expected an integer label or a class name for "
                "each example"
            )
        number = int(value)
        if self.source.ignore is not None and number == self.source.ignore:
            return IGNORED
        if not 0 <= number < self.answers.width and number != IGNORED:
            raise DataError(
                f"{self.where} holds label {number}; the expert's head has {self.answers.width} "
                f"classes, so labels must be 0 to {self.answers.width - 1}"
            )
        return number

    def array(
        self, shape: str, values: Any = None, *, kinds: str = "iufb", ndim: Sequence[int]
    ) -> NDArray[Any]:
        """The values as one array; ``shape`` is how messages call what is expected."""
        values = self.values if values is None else values
        of_images = (bytes, Mapping)  # a mask, a depth map
        try:
            array = np.stack(
                [
                    decode(v, self.source) if isinstance(v, of_images) else np.asarray(v)
                    for v in values
                ]
            )
        except ValueError as error:
            raise DataError(
                f"{self.where} has labels of different shapes; expected {shape}"
            ) from error
        self._check_array(array, shape, kinds, ndim)
        return array

    def _check_array(
        self, array: NDArray[Any], shape: str, kinds: str, ndim: Sequence[int]
    ) -> None:
        if array.dtype.kind not in kinds or array.ndim not in ndim:
            raise DataError(f"{self.where} is {array.dtype} {list(array.shape)}; expected {shape}")

    def _by_name(self, values: Any) -> Any:
        """Numbers that index the data's own class names as those names, where the head has them."""
        names, known = self.class_names, self.answers.names
        if not names:
            return values
        if not known:  # the head has no names: classes are numbered as the data have them
            numbers = {name: index for index, name in enumerate(names)}
            return [numbers.get(v, v) if isinstance(v, str) else v for v in values]
        check_class_names(names, self.answers.width, self.where)
        if set(names) != set(known) or all(known[name] == i for i, name in enumerate(names)):
            return values
        return [
            names[int(v)] if isinstance(v, int | np.integer) and 0 <= int(v) < len(names) else v
            for v in values
        ]
