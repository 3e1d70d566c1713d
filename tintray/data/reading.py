"""Examples: the inputs of one split as the file holds them, without any label."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintray.data.order import INPUTS, DataOrder
from tintray.data.tables import Table, open_table, pick, plain
from tintray.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Inputs of N examples, by what they are: ``image``, ``text``, ``tokens``, ``messages``, ….

    Attributes
    ----------
    columns
        Each of N values. Images are one uint8 array [N, H, W] or [N, H, W, 3], or a list of
        arrays of different sizes.
    rows
        Which rows of the split they are, int64 [N]: a slice, without the unreadable ones.
    unreadable
        What was left out and why, a sentence each.
    """

    columns: Mapping[str, Any]
    source: str
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def digest(self) -> str:
        """sha256 of the values; where they come from does not count."""
        total = hashlib.sha256()
        for name in sorted(self.columns):
            values = self.columns[name]
            if isinstance(values, np.ndarray):
                _feed(total, values)
            elif name == "image":
                for image in values:
                    _feed(total, np.asarray(image))
            else:
                total.update(f"{name}{json.dumps(plain(values), ensure_ascii=False)}".encode())
        return total.hexdigest()

    def first(self, count: int) -> Examples:
        """The first ``count`` of them."""
        columns = {name: values[:count] for name, values in self.columns.items()}
        return replace(self, columns=columns, rows=self.rows[:count])

    @property
    def is_text(self) -> bool:
        """Whether a tokenizer prepares them, rather than an image processor."""
        return "image" not in self.columns


def _feed(total: Any, array: NDArray[Any]) -> None:
    total.update(f"{array.shape}{array.dtype}".encode())
    total.update(np.ascontiguousarray(array).data)


def read_examples(order: DataOrder, role: str) -> Examples:
    """Read the inputs of a split; labels in it are not touched.

    Raises
    ------
    DataError
        If the file, the split, a column or any example is missing, or more examples than
        ``max_bad`` cannot be read.
    """
    table = open_table(order, role)
    if table.rows == 0:
        raise DataError(
            f"{role}: {table.name('image')!r} in {order.path} is empty; expected at least one "
            "example"
            if table.shown
            else f"{role}: {order.path} is empty; expected at least one example"
        )
    rows = np.asarray(order.rows(table.rows, role))
    found = {kind: order.column(kind, table.columns, role) for kind in INPUTS}
    columns = {kind: column for kind, column in found.items() if column is not None}
    if not columns:
        known = ", ".join(name for names in INPUTS.values() for name in names)
        raise DataError(
            f"{role}: {order.path} has no column of inputs; it has {', '.join(table.columns)}, "
            f"expected one called {known}, or its name under 'columns'"
        )
    kind = next(iter(columns))  # images before conversations, those before words and texts
    if kind == "image":
        return _images(order, table, columns["image"], rows, role)
    chosen = {kind: columns[kind]}
    if kind == "text" and "text_pair" in columns:
        chosen["text_pair"] = columns["text_pair"]
    return _texts(order, table, chosen, rows, role)


def _texts(
    order: DataOrder, table: Table, columns: Mapping[str, str], rows: Any, role: str
) -> Examples:
    values = {kind: pick(table.read(column), rows) for kind, column in columns.items()}
    expected = {"tokens": "a list of words", "messages": "a list of messages"}
    bad: dict[int, str] = {}
    for kind, column in columns.items():
        type_ = list if kind in expected else str
        for row, value in zip(rows.tolist(), values[kind], strict=True):
            if not isinstance(value, type_) or not len(value):
                what = expected.get(kind, "a text")
                bad.setdefault(
                    row, f"example {row + 1} has {value!r:.40} in '{column}', not {what}"
                )
    kept = _without(order, rows, bad, role)  # refuses too many of them
    good = [number for number, row in enumerate(rows.tolist()) if row not in bad]
    chosen = {kind: [found[number] for number in good] for kind, found in values.items()}
    if order.prefix and "text" in chosen:
        chosen["text"] = [order.prefix + text for text in chosen["text"]]
    return Examples(chosen, f"{order.path}:{order.split}", kept, tuple(bad.values()))


def _images(order: DataOrder, table: Table, column: str, rows: Any, role: str) -> Examples:
    source = f"{order.path}:{order.split}"
    values = table.read(column)
    if isinstance(values, np.ndarray):
        return Examples({"image": _checked(values, order, role)[rows]}, source, rows)
    with ThreadPoolExecutor(_threads()) as threads:  # decoding releases the interpreter's lock
        decoded = list(threads.map(lambda row: _decoded(values[row], row), rows.tolist()))
    bad = {int(row): found for row, found in zip(rows, decoded, strict=True) if type(found) is str}
    kept = _without(order, rows, bad, role)
    images = [found for found in decoded if not isinstance(found, str)]
    if len({image.shape for image in images}) == 1:
        return Examples({"image": np.stack(images)}, source, kept, tuple(bad.values()))
    return Examples({"image": images}, source, kept, tuple(bad.values()))


def encoded_digest(order: DataOrder, role: str) -> str | None:
    """sha256 of the image files that an order reads, as they are; None if none is to be decoded.

    Raises
    ------
    DataError
        If the data cannot be opened.
    """
    table = open_table(order, role)
    column = order.column("image", table.columns, role)
    if column is None or table.rows == 0:
        return None
    values = table.read(column)
    if isinstance(values, np.ndarray):
        return None
    rows = order.rows(table.rows, role)
    total = hashlib.sha256(np.asarray(rows, np.int64).tobytes())
    for row in rows:
        try:
            total.update(hashlib.sha256(_encoded(values[row])).digest())
        except (OSError, TypeError):
            return None  # whoever decodes it says what is wrong
    return total.hexdigest()


def _encoded(value: Any) -> bytes:
    """The bytes of an image file, wherever it is."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else Path(str(value["path"]))
    return value if isinstance(value, bytes) else Path(value).read_bytes()


def _checked(array: NDArray[Any], order: DataOrder, role: str) -> NDArray[Any]:
    split = order.split_name
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[3:] not in ((), (3,)):
        raise DataError(
            f"{role}: 'x_{split}' in {order.path} is {array.dtype} {list(array.shape)}; expected "
            "uint8 images [N, height, width] or [N, height, width, 3]"
        )
    if array.size == 0:
        raise DataError(
            f"{role}: 'x_{split}' in {order.path} is empty; expected at least one example"
        )
    return array


def decode(value: Any) -> NDArray[Any]:
    """An image as uint8 [H, W] (gray) or [H, W, 3]: a file, its bytes, or an array already.

    Raises
    ------
    OSError, ValueError
        If it cannot be decoded to its last pixel, or is of a mode without an obvious meaning.
    """
    from PIL import Image

    if isinstance(value, Mapping):  # as ``datasets`` keeps images
        value = value["bytes"] if value.get("bytes") is not None else Path(str(value["path"]))
    if isinstance(value, np.ndarray):
        return value
    with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
        image.load()  # all of it: a truncated file shows here
        if image.mode in ("L", "1"):
            return np.asarray(image.convert("L"))
        if image.mode in ("I", "I;16", "F"):
            raise ValueError(f"mode {image.mode} (more than 8 bits per pixel); convert it to RGB")
        return np.asarray(image.convert("RGB"))


def _decoded(value: Any, row: int) -> NDArray[Any] | str:
    try:
        return decode(value)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError) as error:
        name = value if isinstance(value, Path) else f"example {row + 1}"
        return f"{name}: {str(error) or type(error).__name__}"


def _without(
    order: DataOrder, rows: NDArray[np.int64], bad: Mapping[int, str], role: str
) -> NDArray[np.int64]:
    if len(bad) > order.max_bad:
        first = bad[min(bad)]
        raise DataError(
            f"{role}: {len(bad):,} of {len(rows):,} examples of {order.path} cannot be read, "
            f"max_bad allows {order.max_bad:,}; the first is {first}"
        )
    if len(bad) == len(rows):
        raise DataError(
            f"{role}: no example of {order.path} can be read; the first: {bad[min(bad)]}"
        )
    return np.asarray([row for row in rows.tolist() if row not in bad], np.int64)


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)) + 1)


def files_of(order: DataOrder) -> Sequence[Path]:
    """The local files that an order reads; none for a data set on the hub."""
    path = Path(order.path)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.exists() else []
