"""npz files: what an array's header promises is compared with what is there, before it is read.

numpy takes the memory that a header asks for, calls Python's tokenizer on headers that it does not
know, and reads whole arrays. Here the header is bounded, its shape has to fit the member's size,
and only the rows that are asked for are kept.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from tintray.data.source import DataSource
from tintray.data.table import Table
from tintray.errors import DataError, nearest
from tintray.files import foreign, open_regular

_MAX_HEADER = 10_000  # bytes, as numpy has it, with those that say how long it is
_MAX_RATIO = 1100  # what deflate can make of one byte is 1032
_KINDS = "biufSU"  # plain values: no objects, no records
_MAX_NAMES = 100_000  # of classes


@dataclass(frozen=True)
class Header:
    """What an array is, from its first bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int  # bytes before its values

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class ArrayTable(Table):
    """A split of an npz file: arrays ``x_SPLIT``, ``y_SPLIT``, ``COLUMN_SPLIT``."""

    def __init__(self, source: DataSource, role: str) -> None:
        super().__init__(source, role)
        split = source.split_name
        with _archive(self.path, role) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        key = f"x_{split}"
        if key not in names:
            splits = sorted(name.removeprefix("x_") for name in names if name.startswith("x_"))
            raise DataError(
                f"{role}: {self.path} has no array '{key}'; its splits are "
                f"{', '.join(splits) or 'none'}{nearest(key, names)}"
            )
        self._key, self._named = key, "class_names" in names
        called = {"x": "image", "y": "label"}
        below = {n.removesuffix(f"_{split}"): n for n in names if n.endswith(f"_{split}")}
        self.shown = {called.get(name, name): array for name, array in below.items()}
        self.columns = list(self.shown)

    @cached_property
    def rows(self) -> int:
        """Of ``x_SPLIT``."""
        return self.header("image").shape[0]

    @cached_property
    def class_names(self) -> list[str] | None:
        """The array ``class_names``."""
        if not self._named:
            return None
        with _archive(self.path, self.role) as archive:
            header, file = _opened(archive, "class_names")
            count = header.shape[0]
            if len(header.shape) != 1 or count > _MAX_NAMES:
                raise ValueError(f"class_names has the shape {list(header.shape)}")
            self._check_size("class_names", header, count)
            return [str(name) for name in _rows(file, header, range(count))]

    def header(self, column: str) -> Header:
        """What the array of a column is; DataError is raised if it is no plain one with rows."""
        with _archive(self.path, self.role) as archive:
            return _opened(archive, self.shown[column])[0]

    def take(self, column: str, rows: Sequence[int] | NDArray[Any]) -> Any:
        """The rows of an array, texts as a list; the others are passed over."""
        name = self.shown[column]
        with _archive(self.path, self.role) as archive:
            header, file = _opened(archive, name)
            if header.shape[0] != self.rows:
                raise DataError(
                    f"{self.role}: '{name}' in {self.path} holds {header.shape[0]:,} {column}s; "
                    f"expected one for each of the {self.rows:,} examples"
                )
            self._check_size(name, header, header.shape[0] if header.fortran else len(rows))
            ascending, places = np.unique(np.asarray(rows, np.int64), return_inverse=True)
            values = _rows(file, header, ascending.tolist())
            values = values if np.array_equal(ascending, rows) else values[places]
            return values.tolist() if values.dtype.kind in "US" else values

    def _check_size(self, name: str, header: Header, rows: int) -> None:
        self.check_bytes(rows * header.row_bytes, f"'{name}' {list(header.shape)}")


@contextmanager
def _archive(path: Path, role: str) -> Iterator[ZipFile]:
    unreadable = f"{role}: {path} cannot be read as an npz file of plain arrays"
    with foreign(unreadable, DataError), open_regular(path) as file, ZipFile(file) as archive:
        yield archive


def _opened(archive: ZipFile, name: str) -> tuple[Header, BinaryIO]:
    """An array's header, and the file of its values from there on; checked against the archive."""
    members = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
    if len(members) != 1:
        raise ValueError(f"it has {len(members)} arrays called '{name}'")
    member = members[0]
    _check_member(archive, member)
    with archive.open(member) as start:
        header = _header(start.read(_MAX_HEADER), name)
    file: Any = archive.open(member)
    file.read(header.start)
    if header.shape[0] and not header.row_bytes:
        raise ValueError(f"'{name}' {list(header.shape)} is empty")
    promised = header.start + math.prod(header.shape) * header.dtype.itemsize
    if promised != member.file_size:
        raise ValueError(
            f"'{name}' promises {header.dtype} {list(header.shape)}, which are {promised:,} bytes "
            f"with the header, and has {member.file_size:,}"
        )
    return header, file


def _check_member(archive: ZipFile, member: ZipInfo) -> None:
    if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ValueError(
            f"'{member.filename}' is compressed by method {member.compress_type}; numpy writes "
            "stored and deflated arrays"
        )
    assert archive.fp is not None
    whole = archive.fp.seek(0, io.SEEK_END)
    most = member.compress_size * (_MAX_RATIO if member.compress_type == ZIP_DEFLATED else 1)
    if member.compress_size > whole or member.file_size > most:
        raise ValueError(
            f"'{member.filename}' promises {member.file_size:,} bytes, which the file has not"
        )


def _header(start: bytes, name: str) -> Header:
    file, numpys = io.BytesIO(start), np.lib.format
    version = numpys.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"'{name}' is of version {version}; expected an array of plain values")
    read = numpys.read_array_header_1_0 if version == (1, 0) else numpys.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.kind not in _KINDS or dtype.names is not None or dtype.subdtype is not None:
        raise ValueError(f"'{name}' is of {dtype}; expected plain numbers or texts")
    if not shape or not all(type(size) is int and 0 <= size < 2**62 for size in shape):
        raise ValueError(f"'{name}' has the shape {list(shape)}; expected one row per example")
    return Header(shape, dtype, bool(fortran), file.tell())


def _rows(file: BinaryIO, header: Header, rows: Sequence[int]) -> NDArray[Any]:
    """The values at ``rows``, which ascend; ``file`` stands at the first row."""
    total = header.shape[0]
    if header.fortran and len(header.shape) > 1:
        values = np.empty(math.prod(header.shape), header.dtype)
        _fill(file, values)
        _check_end(file)
        return np.ascontiguousarray(values.reshape(header.shape[::-1]).T[np.asarray(rows)])
    chosen = np.empty((len(rows), *header.shape[1:]), header.dtype)
    at = place = 0  # the row that the file stands at, and the first of ``chosen`` without values
    while place < len(rows):
        first, end = rows[place], place + 1
        while end < len(rows) and rows[end] == rows[end - 1] + 1:
            end += 1
        deque(_pieces(file, (first - at) * header.row_bytes), maxlen=0)  # passed over
        _fill(file, chosen[place:end])
        at, place = first + end - place, end
    if at == total:
        _check_end(file)  # which also compares the checksum
    return chosen


def _fill(file: BinaryIO, values: NDArray[Any]) -> None:
    """Read into a contiguous array."""
    room = values.reshape(-1).view(np.uint8) if values.nbytes else values
    done = 0
    for piece in _pieces(file, values.nbytes):
        room[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)


def _pieces(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count > 0:
        piece = file.read(min(count, 1 << 20))
        if not piece:
            raise EOFError("it ends within an array")
        yield piece
        count -= len(piece)


def _check_end(file: BinaryIO) -> None:
    if file.read(1):
        raise ValueError("an array is longer than its header says")
