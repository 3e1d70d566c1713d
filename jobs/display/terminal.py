"""Where text reaches a terminal: nothing of it that came from outside is acted upon there.

Names, reasons and logs come from job files, manifests, catalogs and clusters. Tables are drawn from
records whose texts are escaped first, and a console escapes once more what it is given.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TextIO, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tintray.errors import printable, printable_lines, shortened

Value = TypeVar("Value")

MAX_CELL = 2000  # characters of one text in a table
_LOG_WIDTH = 400  # a log has no edge to break lines at


class SafeConsole(Console):
    """A console whose only control characters are its own colours."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What rich draws, its texts escaped."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


def open_console(stream: TextIO) -> Console:
    """A console on ``stream``: in colour on a terminal, plain text elsewhere."""
    console = SafeConsole(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    return console


def escaped(value: Value) -> Value:
    """A copy of a record whose texts are each one printable line of bounded length."""
    found: Any = value
    if isinstance(found, str):
        found = shortened(printable(str(found)), MAX_CELL)
    elif found is None or isinstance(found, int | float):
        return value
    elif is_dataclass(found) and not isinstance(found, type):
        copied = copy.copy(found)
        for field in fields(found):
            object.__setattr__(copied, field.name, escaped(getattr(found, field.name)))
        found = copied
    elif isinstance(found, Mapping):
        found = {escaped(key): escaped(item) for key, item in found.items()}
    elif isinstance(found, list | tuple):
        found = [escaped(item) for item in found]
    result: Value = found
    return result
