"""Tables that leave out what matters least where a terminal is too narrow for all of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from tintray.errors import printable
from tintray.jobs.cli.tables import table_of

_GAP = 2
_LONG = 100  # rows; from here on the layout of rich's tables takes longer than reading the catalog
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
    names, shown = [columns[i] for i in left], [[row[i] for i in left] for row in rows]
    if len(rows) <= _LONG:
        console.print(table_of(names, shown))
        return
    *widths, last = (longest[i] for i in left)
    room = console.width - sum(width + _GAP for width in widths)
    _print_lines(names, shown, [*widths, min(last, room)], console)


def _print_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    widths: Sequence[int],
    console: Console,
) -> None:
    """The same with each row on one line of cells this wide; what has no room is cut off."""
    drawn: dict[tuple[str, str], str] = {}

    def cell(content: str | Text, width: int, right: bool) -> str:
        text = printable(str(content))
        if cell_len(text) > width:
            text = set_cell_size(text, max(0, width - 1)) + "…"
        gap = " " * (width - cell_len(text))
        if isinstance(content, Text) and content.style and console.is_terminal:
            key = text, str(content.style)
            if key not in drawn:
                with console.capture() as captured:
                    console.print(Text(text, style=content.style), end="")
                drawn[key] = captured.get()
            text = drawn[key]
        return gap + text if right else text + gap

    headings = [Text(name.lstrip(">~"), style="bold") for name in columns]
    rights = [name.startswith(">") for name in columns]
    for row in (headings, *rows):
        cells = map(cell, row, widths, rights)
        console.file.write((" " * _GAP).join(cells).rstrip() + "\n")
