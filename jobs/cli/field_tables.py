"""Fields of the job file as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tintray.jobs.cli.columns import print_columns
from tintray.jobs.cli.tables import print_facts, title
from tintray.jobs.config.reference import FieldNote


def print_fields(notes: Sequence[FieldNote], console: Console) -> None:
    """One field with all that is known of it; or several, section by section."""
    if len(notes) == 1 and not notes[0].section:
        _print_one(notes[0], console)
        return
    rest = list(notes)
    while rest:
        if rest[0].section:
            section = rest.pop(0)
            console.print(title(section.path))
            console.print(Text(section.meaning, style="dim"))
        end = next((n for n, note in enumerate(rest) if note.section), len(rest))
        rows = [[note.path.rpartition(".")[2], note.default, note.meaning] for note in rest[:end]]
        if rows:
            print_columns(("field", "default", "~meaning"), rows, console, ["default"])
        if rest := rest[end:]:
            console.print()


def _print_one(note: FieldNote, console: Console) -> None:
    console.print(title(note.path, note.meaning))
    facts = {
        "type": note.type,
        "values": note.values,
        "default": note.default or "left out",
        "example": note.example,
    }
    print_facts(facts, console)
