"""Labels of a test set: read apart from the inputs, checked against what the expert answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tintray.data.images import decode
from tintray.data.source import LABEL, DataSource
from tintray.data.tables import open_table
from tintray.errors import DataError, nearest
from tintray.files import foreign

NONE = -100
"""The label of what does not count, as in torch's cross-entropy."""


_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Answers:
    """What an expert's head answers with: how many outputs, and the names of the classes."""

    width: int
    names: Mapping[str, int] = field(default_factory=dict)


def read_labels(
    order: DataSource, kind: str, rows: Sequence[int] | NDArray[Any], answers: Answers, role: str
) -> Any:
    """The labels of the examples at ``rows``, as their kind of task wants them.

    Returns
    -------
    Tensor or list
        Classes int64 [N]; multi-label float [N, C]; values float [N] or [N, C]; words a list of
        int64 [words]; segmentation int64 [N, H, W]; depth float [N, H, W]; normals float
        [N, 3, H, W]; a text to be written for seq2seq: a list of texts.

    Raises
    ------
    DataError
        If labels are missing, unreadable, or outside of what the expert's head answers.
    """
    table = open_table(order, role)
    column = order.column(LABEL, table.columns, role)
    if column is None:
        wanted = f" (array 'y_{order.split_name}')" if table.shown else ""
        raise DataError(
            f"{role}: {order.path} has no column of labels{wanted}; it has "
            f"{', '.join(table.name(name) for name in table.columns)}, "
            "expected one called label, or its name under 'columns: {label: …}'"
        )
    where = f"{role}: '{table.name(column)}' in {order.path}"
    if len(rows) and max(rows) >= table.rows:
        raise DataError(
            f"{where} holds {table.rows:,} labels; expected one for each of the examples, up to "
            f"row {max(rows) + 1:,}"
        )
    labels = _Labels(table.take(column, rows), answers, order, where, table.class_names)
    with foreign(f"{where} holds labels that cannot be read", DataError):
        return _READERS[kind](labels)


def check_class_names(order: DataSource, width: int, role: str) -> None:
    """Refuse data that name other classes, in number, than the expert's head answers.

    Raises
    ------
    DataError
        Naming both numbers.
    """
    names = open_table(order, role).class_names
    if names is not None and len(names) != width:
        raise DataError(
            f"{role}: {order.path} names {len(names)} classes, and the expert's head has {width}; "
            "expected as many, is this the data of another task?"
        )


def class_names(order: DataSource, role: str) -> list[str] | None:
    """Names of the classes, in the order of their numbers; None where the data do not say."""
    return open_table(order, role).class_names


@dataclass(frozen=True)
class _Labels:
    values: Any
    answers: Answers
    order: DataSource
    where: str
    class_names: list[str] | None

    def index(self, value: Any) -> int:
        """A class, given by number or by name."""
        if isinstance(value, str) and self.answers.names:
            found = self.answers.names.get(value)
            if found is None and not _NUMBER.fullmatch(value):
                raise DataError(
                    f"{self.where} holds {value!r}, which is no class of the expert's head"
                    f"{nearest(value, self.answers.names)}; it has "
                    f"{', '.join(list(self.answers.names)[:8])}"
                )
            value = int(value) if found is None else found
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = int(value)
        if isinstance(value, bool | float | str) or not isinstance(value, int | np.integer):
            raise DataError(
                f"{self.where} holds {value!r:.40}; expected an integer label or a class name for "
                f"each example"
            )
        number = int(value)
        if self.order.ignore is not None and number == self.order.ignore:
            return NONE
        if not 0 <= number < self.answers.width and number != NONE:
            raise DataError(
                f"{self.where} holds label {number}; the expert's head has {self.answers.width} "
                f"classes, so labels must be 0 to {self.answers.width - 1}"
            )
        return number

    def array(self, shape: str, *, kinds: str = "iufb", ndim: Sequence[int]) -> NDArray[Any]:
        try:
            found = np.stack([np.asarray(_pixels(value, self.order)) for value in self.values])
        except ValueError as error:
            raise DataError(
                f"{self.where} has labels of different shapes; expected {shape}"
            ) from error
        if found.dtype.kind not in kinds or found.ndim not in ndim:
            raise DataError(f"{self.where} is {found.dtype} {list(found.shape)}; expected {shape}")
        return found


def _pixels(value: Any, order: DataSource) -> Any:
    """A label that is an image (a mask, a depth map) as an array."""
    return decode(value, order) if isinstance(value, bytes | Mapping) else value


def _classes(labels: _Labels) -> Tensor:
    if isinstance(labels.values, np.ndarray):
        array = labels.values
        if array.ndim != 1 or array.dtype.kind not in "iuU":
            raise DataError(
                f"{labels.where} is {array.dtype} {list(array.shape)}; expected one integer label "
                "for each example"
            )
    by_name = _by_name(labels)
    return torch.tensor([by_name.index(value) for value in by_name.values], dtype=torch.int64)


def _by_name(labels: _Labels) -> _Labels:
    """Numbers that index a data set's own class names go by those names where the head has them."""
    names, known = labels.class_names, labels.answers.names
    if not names:
        return labels
    if not known:  # the head has no names: classes are numbered as the data have them
        numbers = {name: index for index, name in enumerate(names)}
        values = [numbers.get(v, v) if isinstance(v, str) else v for v in labels.values]
        return _Labels(values, labels.answers, labels.order, labels.where, None)
    if len(names) != labels.answers.width:
        raise DataError(
            f"{labels.where} has {len(names)} classes, and the expert's head has "
            f"{labels.answers.width}; expected as many, is this the data of another task?"
        )
    if set(names) != set(known) or all(known[name] == i for i, name in enumerate(names)):
        return labels
    values = [
        names[int(v)] if isinstance(v, int | np.integer) and 0 <= int(v) < len(names) else v
        for v in labels.values
    ]
    return _Labels(values, labels.answers, labels.order, labels.where, None)


def _many(labels: _Labels) -> Tensor:
    """Lists of classes, or one 0 or 1 for each class."""
    width = labels.answers.width
    found = torch.zeros(len(labels.values), width)
    for row, value in enumerate(labels.values):
        given = list(value) if isinstance(value, list | tuple | np.ndarray) else None
        if given is None:
            raise DataError(
                f"{labels.where} holds {value!r:.40}; expected a list of classes, or {width} "
                "zeros and ones"
            )
        if len(given) == width and all(not isinstance(v, str) and v in (0, 1) for v in given):
            found[row] = torch.tensor([float(v) for v in given])
        else:
            for one in given:
                found[row, labels.index(one)] = 1
    return found


def _values(labels: _Labels) -> Tensor:
    width = labels.answers.width
    if not isinstance(labels.values, np.ndarray) and labels.values:
        try:  # csv gives texts
            labels = _Labels(
                [float(v) if isinstance(v, str) else v for v in labels.values],
                *(labels.answers, labels.order, labels.where, None),
            )
        except ValueError as error:
            raise DataError(f"{labels.where} is not made of numbers ({error})") from error
    found = labels.array(f"one number for each example, or {width}", ndim=(1, 2))
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"{labels.where} holds NaN or infinite numbers; expected finite ones")
    if found.reshape(len(found), -1).shape[1] != width:
        raise DataError(
            f"{labels.where} is {list(found.shape)}; the expert answers with {width} numbers"
        )
    return torch.from_numpy(found.reshape(len(found), width))


def _words(labels: _Labels) -> list[Tensor]:
    for row in labels.values:
        if not isinstance(row, list | tuple | np.ndarray):
            raise DataError(f"{labels.where} holds {row!r:.40}; expected a list of tags")
    flat = [value for row in labels.values for value in row]
    named = iter(_by_name(replace(labels, values=flat)).values)
    labels = replace(labels, values=[[next(named) for _ in row] for row in labels.values])
    return [
        torch.tensor([labels.index(v) for v in row], dtype=torch.int64) for row in labels.values
    ]


def _segments(labels: _Labels) -> Tensor:
    found = labels.array("one class for each pixel, [N, height, width]", kinds="iu", ndim=(3,))
    classes = torch.from_numpy(found.astype(np.int64))
    ignored = 255 if labels.order.ignore is None else labels.order.ignore
    void = (classes == ignored) | (classes == NONE)
    inside = classes[~void]
    if len(inside) and (inside.min() < 0 or inside.max() >= labels.answers.width):
        worst = int(inside.min()) if inside.min() < 0 else int(inside.max())
        raise DataError(
            f"{labels.where} holds label {worst}; the expert's head has {labels.answers.width} "
            f"classes, so labels must be 0 to {labels.answers.width - 1}, or {ignored} for none"
        )
    return classes.masked_fill(void, NONE)


def _depth(labels: _Labels) -> Tensor:
    found = labels.array("one depth for each pixel, [N, height, width]", ndim=(3,))
    return torch.from_numpy(found.astype(np.float32))


def _normals(labels: _Labels) -> Tensor:
    found = labels.array("a direction for each pixel, [N, height, width, 3]", ndim=(4,))
    if found.shape[-1] == 3:
        found = np.moveaxis(found, -1, 1)
    if found.shape[1] != 3:
        raise DataError(f"{labels.where} is {list(found.shape)}; expected [N, height, width, 3]")
    return torch.from_numpy(np.ascontiguousarray(found.astype(np.float32)))


def _texts(labels: _Labels) -> list[str]:
    for value in labels.values:
        if not isinstance(value, str) or _SURROGATE.search(value):
            raise DataError(f"{labels.where} holds {value!r:.40}; expected a text for each example")
    return list(labels.values)


_READERS = {
    "classification": _classes,
    "multi_label": _many,
    "regression": _values,
    "token_classification": _words,
    "seq2seq": _texts,
    "segmentation": _segments,
    "depth": _depth,
    "normals": _normals,
}
