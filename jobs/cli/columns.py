"""Tables that leave out what matters least where a terminal is too narrow for all of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tintray.jobs.cli.tables import table_of

_GAP = 2
_PROSE = 24  # cells that a column needs whose texts may wrap


def print_columns(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    console: Console,
    drop: Sequence[str],
) -> None:
    """A table, as of ``table_of``, less the columns that do not fit: the first of ``drop`` first.

    A pipe is as wide as it has to be, so nothing is left out there.
    """
    left = list(range(len(columns)))
    names = [column.lstrip(">~") for column in columns]
    widths = [_width(column, index, rows) for index, column in enumerate(columns)]
    for name in drop:
        if not console.is_terminal or sum(widths[i] + _GAP for i in left) - _GAP <= console.width:
            break
        left.remove(names.index(name))
    console.print(table_of([columns[i] for i in left], [[row[i] for i in left] for row in rows]))


def _width(column: str, index: int, rows: Sequence[Sequence[str | Text]]) -> int:
    """The cells that a column takes."""
    longest = max((cell_len(str(row[index])) for row in rows), default=0)
    name = cell_len(column.lstrip(">~"))
    return max(name, min(longest, _PROSE) if column.startswith("~") else longest)
