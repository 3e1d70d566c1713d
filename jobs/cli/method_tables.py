"""Merging methods as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from tintray.jobs.cli.tables import print_facts, table_of, title
from tintray.jobs.runs.method_list import LEARNED, MethodLine
from tintray.vectors.task_count_scale import FEW


def print_methods(lines: Sequence[MethodLine], console: Console) -> None:
    """One method with all that is known of it; or several, one a line."""
    if len(lines) == 1:
        _print_one(lines[0], console)
        return
    rows = []
    for line in lines:
        tuned = ", ".join(f"{p.name}={p.default:g}" for p in line.parameters)
        data = "-" if line.data == "none" else line.data
        rows.append([line.name, data, tuned or "-", line.summary])
    console.print(table_of(("method", "data", "parameters", "what it does"), rows))


def _print_one(line: MethodLine, console: Console) -> None:
    console.print(title(line.name, line.summary))
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
