"""Tables that leave out what matters least where a terminal is too narrow for all of it.

Each line is written as text: rich's own layout of a table takes longer than everything else that
`ps` and `list` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from tintray.errors import printable

_GAP = 2
_PROSE = 24  # cells that a column needs whose texts may wrap
_LEAST = 8  # cells that are left of a column that is cut off


def print_columns(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    console: Console,
    drop: Sequence[str],
) -> None:
    """A table, as of ``table_of``, less the columns that do not fit: the first of ``drop`` first.

    Texts of a column ``~name`` wrap; of others, what has no room is cut off. A pipe is as wide as
    it has to be: there every row is one line, and whole.
    """
    names = [column.lstrip(">~") for column in columns]
    widths = [max(map(cell_len, (name, *(str(row[i]) for row in rows)))) for i, name in
              enumerate(names)]  # fmt: skip
    left = list(range(len(columns)))
    if console.is_terminal:
        least = [min(cells, _PROSE) if column.startswith("~") else cells
                 for cells, column in zip(widths, columns, strict=True)]  # fmt: skip
        for name in drop:
            if sum(least[i] + _GAP for i in left) - _GAP <= console.width:
                break
            left.remove(names.index(name))
        _narrow(widths, left, columns, console.width)
    painted = _Painted(console)
    headings = [Text(name, style="bold") for name in names]
    gaps = [" " * widths[i] for i in left]
    for row in (headings, *rows):
        cells = [painted.cell(row[i], widths[i], columns[i]) for i in left]
        for line in zip_longest(*cells):
            drawn = (text or gap for text, gap in zip(line, gaps, strict=True))
            console.file.write((" " * _GAP).join(drawn).rstrip() + "\n")


def _narrow(widths: list[int], left: Sequence[int], columns: Sequence[str], room: int) -> None:
    """Take from the columns that may wrap what is missing, then from the widest."""
    prose = [i for i in left if columns[i].startswith("~")]
    for i in (*prose, *sorted(left, key=lambda i: -widths[i])):
        missing = sum(widths[j] + _GAP for j in left) - _GAP - room
        least = _PROSE if i in prose else _LEAST
        if missing > 0:
            widths[i] = min(widths[i], max(least, widths[i] - missing))


class _Painted:
    """Cells as they are written: of one width, in colour on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: dict[tuple[str, str], str] = {}

    def cell(self, content: str | Text, width: int, column: str) -> list[str]:
        """The lines of a cell."""
        text = printable(str(content))
        if cell_len(text) <= width:
            lines = [text]
        elif column.startswith("~"):
            lines = [line.plain.rstrip() for line in Text(text).wrap(self._console, width)]
        else:
            lines = [set_cell_size(text, width - 1) + "…"]
        style = str(content.style) if isinstance(content, Text) else ""
        return [self._padded(line, style, width, column.startswith(">")) for line in lines]

    def _padded(self, line: str, style: str, width: int, right: bool) -> str:
        gap = " " * (width - cell_len(line))
        if style and self._console.is_terminal:
            if (line, style) not in self._drawn:
                with self._console.capture() as captured:
                    self._console.print(Text(line, style=style), end="")
                self._drawn[line, style] = captured.get()
            line = self._drawn[line, style]
        return gap + line if right else line + gap
