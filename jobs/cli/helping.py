"""The help on a terminal of any width: lines break at spaces, and nothing is cut off."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Any

import click

EXAMPLE = "\b\nExample:\n"
_HYPHEN, _SPACE = "\u2011", "\u00a0"  # at these no line breaks; they are turned back in the end
_VALUE = re.compile(r"(--?[\w-]+) (?=[^-\s])")


class Formatter(click.HelpFormatter):
    """Breaks no option and no path at its hyphen, so that both can be copied."""

    def write_text(self, text: str) -> None:
        """A paragraph."""
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], *widths: Any, **named: Any) -> None:
        """A list of options or commands."""
        kept = [(first, second.replace("-", _HYPHEN)) for first, second in rows]
        super().write_dl(kept, *widths, **named)

    def getvalue(self) -> str:
        """All of it."""
        return super().getvalue().replace(_HYPHEN, "-").replace(_SPACE, " ")


class Context(click.Context):
    """A context whose help is formatted so."""

    formatter_class = Formatter


class Command(click.Command):
    """A command whose examples fit the terminal: a long one goes on as a shell reads it."""

    context_class = Context

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What it does, with its examples."""
        about, mark, examples = (self.help or "").partition(EXAMPLE)
        lines = "\n".join(_fitted(line, formatter.width) for line in examples.splitlines())
        shown = click.Command(self.name, help=f"{about}{mark}{lines}")
        shown.format_help_text(ctx, formatter)


class Group(Command, click.Group):
    """Commands with the whole of what each does."""

    def sections(self) -> Iterable[tuple[str, Iterable[click.Command]]]:
        """The commands under titles."""
        return [("Commands", [self.commands[name] for name in sorted(self.commands)])]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help of the commands, section by section."""
        width = max(map(len, self.commands))
        for title, commands in self.sections():
            rows = [(str(one.name).ljust(width), one.get_short_help_str(200)) for one in commands]
            with formatter.section(title):
                formatter.write_dl(rows)


def _fitted(line: str, width: int) -> str:
    """A line of an example, broken before its options where the terminal ends."""
    parts = textwrap.wrap(
        _VALUE.sub(rf"\1{_SPACE}", line.strip()),
        width - 4,  # two of click's own, and room for a backslash
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(parts)
