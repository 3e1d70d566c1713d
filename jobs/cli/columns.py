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

    A pipe is as wide as it has to be: there every row is one line, and whole.
    """
    left = list(range(len(columns)))
    names = [column.lstrip(">~") for column in columns]
    longest = [max(map(cell_len, (name, *(str(row[i]) for row in rows)))) for i, name in
               enumerate(names)]  # fmt: skip
    if not console.is_terminal:
        console.width = max(console.width, sum(longest) + _GAP * len(longest))
    least = [min(cells, _PROSE) if column.startswith("~") else cells
             for cells, column in zip(longest, columns, strict=True)]  # fmt: skip
    for name in drop:
        if sum(least[i] + _GAP for i in left) - _GAP <= console.width:
            break
        left.remove(names.index(name))
    console.print(table_of([columns[i] for i in left], [[row[i] for i in left] for row in rows]))
