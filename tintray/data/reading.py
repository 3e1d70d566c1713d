"""Examples: the inputs of one split as the file holds them, without any label."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintray.data.arrays import ArrayTable
from tintray.data.images import as_images, decode, encoded
from tintray.data.source import INPUTS, DataSource
from tintray.data.table import Table
from tintray.data.tables import open_table, plain
from tintray.errors import DataError
from tintray.files import foreign


@dataclass(frozen=True)
class Examples:
    """Inputs of N examples, by what they are: ``image``, ``text``, ``tokens``, ``messages``, …."""

    # Each of N values. Images are one uint8 array [N, H, W] or [N, H, W, 3], or a list of arrays of
    # different sizes.
    columns: Mapping[str, Any]
    # which rows of the split they are, int64 [N]: a slice, without the unreadable ones
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def digest(self) -> str:
        """sha256 of the values; where they come from does not count."""
        total = hashlib.sha256()
        for name in sorted(self.columns):
            values = self.columns[name]
            if name == "image" or isinstance(values, np.ndarray):
                for array in [values] if isinstance(values, np.ndarray) else values:
                    total.update(f"{array.shape}{array.dtype}".encode())
                    total.update(np.ascontiguousarray(array).data)
            else:
                total.update(f"{name}{json.dumps(plain(values), ensure_ascii=False)}".encode())
        return total.hexdigest()

    @property
    def is_text(self) -> bool:
        """Whether a tokenizer prepares them, rather than an image processor."""
        return "image" not in self.columns


def read_examples(source: DataSource, role: str, rows: NDArray[np.int64] | None = None) -> Examples:
    """Read the inputs of a split, no label; DataError if any is missing, or too many are bad.

    ``rows`` of the split are read, or those that the source means.
    """
    table = open_table(source, role)
    if table.rows == 0:
        where = f"{table.name('image')!r} in {source.path}" if table.shown else source.path
        raise DataError(f"{role}: {where} is empty; expected at least one example")
    if rows is None:
        rows = np.asarray(source.rows(table.rows, role), np.int64)
    columns = {k: c for k in INPUTS if (c := source.column(k, table.columns, role)) is not None}
    if not columns:
        known = ", ".join(name for names in INPUTS.values() for name in names)
        raise DataError(
            f"{role}: {source.path} has no column of inputs; it has {', '.join(table.columns)}, "
            f"expected one called {known}, or its name under 'columns'"
        )
    kind = next(iter(columns))  # images before conversations, those before words and texts
    if kind == "image":
        return _images(table, columns["image"], rows)
    wanted = ("text", "text_pair") if kind == "text" else (kind,)
    return _texts(table, {k: c for k, c in columns.items() if k in wanted}, rows)


def _texts(table: Table, columns: Mapping[str, str], rows: Any) -> Examples:
    values = {kind: table.take(column, rows) for kind, column in columns.items()}
    bad: dict[int, str] = {}
    for kind, column in columns.items():
        for row, value in zip(rows.tolist(), values[kind], strict=True):
            problem = _problem(value, kind)
            if problem:
                bad.setdefault(row, f"example {row + 1} has {value!r:.40} in '{column}', {problem}")
    good = _without(table, rows, bad)
    chosen = {kind: [column[number] for number in good] for kind, column in values.items()}
    if table.source.prefix and "text" in chosen:
        chosen["text"] = [table.source.prefix + text for text in chosen["text"]]
    return Examples(chosen, rows[good])


def _problem(value: Any, kind: str) -> str | None:
    """What keeps a value from being a text, a list of words or a conversation; None if nothing."""
    expected = {"tokens": "a list of words", "messages": "a list of messages"}.get(kind, "a text")
    parts = value if isinstance(value, list) and kind in ("tokens", "messages") else [value]
    if kind == "messages":
        fits = all(isinstance(m, Mapping) and {"role", "content"} <= {*m} for m in parts)
    else:
        fits = all(isinstance(part, str) for part in parts)
    if not value or not fits:
        return f"not {expected}"
    try:
        json.dumps(plain(value), ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        return "which holds what no text can (half of a surrogate pair, or lists without end)"
    return None


def _images(table: Table, column: str, rows: Any) -> Examples:
    values = table.take(column, rows)
    if isinstance(values, np.ndarray):
        where = f"{table.role}: '{table.name(column)}' in {table.source.path}"
        if values.size == 0:
            raise DataError(f"{where} is empty; expected at least one example")
        return Examples({"image": as_images(values, where)}, rows)
    taken, lock = 0, Lock()

    def decoded(value: Any, row: int) -> NDArray[Any] | str:
        """An image, or a sentence that says why there is none; all within one budget."""
        nonlocal taken
        name = str(value) if isinstance(value, Path) else f"example {row + 1}"
        try:
            with foreign(name, DataError):
                image = decode(value, table.source)
        except DataError as error:
            return str(error)
        with lock:
            taken += image.nbytes
            table.check_bytes(taken, "what was decoded of the images")
        return image

    workers = min(8, len(os.sched_getaffinity(0)) + 1)
    with ThreadPoolExecutor(workers) as threads:  # decoding releases the interpreter's lock
        results = list(threads.map(decoded, values, rows.tolist()))
    bad = {int(row): one for row, one in zip(rows, results, strict=True) if isinstance(one, str)}
    good = _without(table, rows, bad)
    images = [one for one in results if not isinstance(one, str)]
    alike = len({image.shape for image in images}) == 1
    return Examples({"image": np.stack(images) if alike else images}, rows[good])


def _without(table: Table, rows: NDArray[np.int64], bad: Mapping[int, str]) -> list[int]:
    """Which of ``rows`` can be read; DataError is raised if too many cannot."""
    path, most = table.source.path, table.source.max_bad
    if len(bad) > most:
        raise DataError(
            f"{table.role}: {len(bad):,} of {len(rows):,} examples of {path} cannot be read, "
            f"max_bad allows {most:,}; the first is {bad[min(bad)]}"
        )
    if len(bad) == len(rows):
        raise DataError(
            f"{table.role}: no example of {path} can be read; the first: {bad[min(bad)]}"
        )
    return [number for number, row in enumerate(rows.tolist()) if row not in bad]


def encoded_digest(source: DataSource, role: str) -> str | None:
    """sha256 of the image files that a source reads, as they are; None if none is to be decoded."""
    table = open_table(source, role)
    column = source.column("image", table.columns, role)
    if column is None or table.rows == 0 or isinstance(table, ArrayTable):
        return None
    rows = np.asarray(source.rows(table.rows, role), np.int64)
    total = hashlib.sha256(rows.tobytes())
    for value in table.take(column, rows):
        try:
            total.update(hashlib.sha256(encoded(value, source)).digest())
        except (OSError, TypeError, ValueError):
            return None  # whoever decodes it says what is wrong
    return total.hexdigest()
