"""How much a data set is, from headers and names alone: for plans, which read no example."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tintray.data.order import DataOrder
from tintray.data.tables import IMAGE_SUFFIXES, npz_shape
from tintray.errors import DataError


@dataclass(frozen=True)
class Extent:
    """What a plan can know of a set of examples.

    Attributes
    ----------
    examples
        How many; None where only reading would tell.
    shape
        Of an example in the file, where all have one.
    file_bytes
        Of the files that hold them.
    """

    examples: int | None
    shape: tuple[int, ...] | None
    file_bytes: int


def extent(order: DataOrder) -> Extent:
    """How much an order selects; nothing at all where it is not on this machine.

    What cannot be read is left to whoever reads it, who says what is wrong with it.
    """
    path = Path(order.path)
    if path.is_dir():
        folder = path / order.split_name
        within = folder if folder.is_dir() else path
        files = [file for file in within.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]
        return Extent(_chosen(order, len(files)), None, sum(file.stat().st_size for file in files))
    if not path.is_file():
        return Extent(0, None, 0)
    size = path.stat().st_size
    if path.suffix.lower() == ".npz":
        try:
            total, *shape = npz_shape(path, f"x_{order.split_name}")
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            return Extent(None, None, size)
        return Extent(_chosen(order, total), tuple(shape), size)
    return Extent(None, None, size)


def _chosen(order: DataOrder, total: int) -> int | None:
    try:
        return len(order.rows(total, "data"))
    except DataError:
        return None
