"""Merging methods as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tintray.jobs.cli.tables import open_table, print_facts
from tintray.jobs.runs.method_list import LEARNED, MethodLine
from tintray.vectors.task_count_scale import FEW


def print_methods(lines: Sequence[MethodLine], console: Console) -> None:
    """One method with all that is known of it; or several, one a line."""
    if len(lines) == 1:
        _print_one(lines[0], console)
        return
    table = open_table("method", "data", "parameters", "what it does")
    for line in lines:
        tuned = ", ".join(f"{p.name}={p.default:g}" for p in line.parameters)
        data = "-" if line.data == "none" else line.data
        table.add_row(line.name, data, tuned or "-", line.summary)
    console.print(table)


def _print_one(line: MethodLine, console: Console) -> None:
    console.print(Text.assemble((line.name, "bold"), f"   {line.summary}"))
    scale = "1/K" if line.scale is None else f"{line.scale:g}"
    if line.scale is not None and line.adds_up:
        scale += f", beyond {FEW} experts {line.scale * FEW:g}/K"
    facts = {
        "source": line.source,
        "data": line.data,
        "scale": "" if line.name in LEARNED else scale,
        "experts": "" if line.most is None else f"{line.most} at most",
        "backbones": "one for each task" if line.own_backbones else "",
    }
    facts |= {p.name: f"{p.about}; in {p.range}, default {p.default:g}" for p in line.parameters}
    print_facts(facts, console)
