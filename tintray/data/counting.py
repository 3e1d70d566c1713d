"""How much a data set is, from headers and names alone: for plans, which read no example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tintray.data.arrays import ArrayTable
from tintray.data.images import ImageFolder
from tintray.data.source import DataSource
from tintray.data.tables import open_table
from tintray.errors import DataError


@dataclass(frozen=True)
class Extent:
    """What a plan can know of a set of examples."""

    examples: int | None  # None where only reading would tell
    shape: tuple[int, ...] | None  # of an example in the file, where all have one
    file_bytes: int


def extent(source: DataSource) -> Extent:
    """How much a source holds; nothing at all where it is not on this machine.

    What cannot be read is left to whoever reads it, who says what is wrong with it.
    """
    path = Path(source.path)
    if not path.exists():
        return Extent(0, None, 0)
    size = path.stat().st_size if path.is_file() else 0
    try:
        table = open_table(source, "data")
        if isinstance(table, ArrayTable):
            shape = table.header("image").shape[1:]
            if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
                shape = (*shape[1:], shape[0])  # channels come first in the file
            return Extent(len(source.rows(table.rows, "data")), shape, size)
        if isinstance(table, ImageFolder):
            return Extent(len(source.rows(table.rows, "data")), None, table.file_bytes())
    except DataError:
        pass
    return Extent(None, None, size)
