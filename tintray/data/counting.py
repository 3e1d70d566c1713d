"""How much a data set is, from headers and names alone: for plans, which read no example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tintray.data.arrays import ArrayTable
from tintray.data.images import ImageFolder
from tintray.data.source import DataSource
from tintray.data.table import Table
from tintray.data.tables import open_table
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


def extent(order: DataSource) -> Extent:
    """How much an order selects; nothing at all where it is not on this machine.

    What cannot be read is left to whoever reads it, who says what is wrong with it.
    """
    path = Path(order.path)
    if not path.exists():
        return Extent(0, None, 0)
    size = path.stat().st_size if path.is_file() else 0
    try:
        table = open_table(order, "data")
        if isinstance(table, ArrayTable):
            shape = table.header("image").shape[1:]
            return Extent(_count(order, table), _channels_last(shape), size)
        if isinstance(table, ImageFolder):
            return Extent(_count(order, table), None, table.file_bytes())
    except DataError:
        pass
    return Extent(None, None, size)


def _count(order: DataSource, table: Table) -> int:
    return len(order.rows(table.rows, "data"))


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3)
    return (*shape[1:], shape[0]) if first else shape
