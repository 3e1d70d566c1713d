"""A merge's tree and the difference of two merges, as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from jobs.growth.history import MergeDifference, Version

_LAYERS = 20  # as many as fit a terminal: those that changed most


def print_history(versions: Sequence[Version], console: Console) -> None:
    """The tree: each version below the one that it grew from."""
    nodes: dict[str, Tree] = {}
    for version in versions:
        label = _label(version)
        above = nodes.get(version.parent) if version.parent is not None else None
        nodes[version.ref] = Tree(label) if above is None else above.add(label)
        if above is None:
            nodes[f"root {version.ref}"] = nodes[version.ref]
    for name, node in nodes.items():
        if name.startswith("root "):
            console.print(node)


def _label(version: Version) -> Text:
    what = version.operation
    if version.changed:
        what += f" {', '.join(version.changed)}"
    if version.mode:
        what += f" ({version.mode})"
    kept = ""
    if version.normalised_accuracy is not None:
        kept = f", {100 * version.normalised_accuracy:.1f} % of the experts"
    gone = ", removed" if version.removed else ""
    when = version.created[:16].replace("T", " ")
    return Text.assemble(
        (version.ref, "bold"), f"  {what}  ", (f"{version.tasks} tasks{kept}, {when}{gone}", "dim")
    )


def print_merge_difference(found: MergeDifference, console: Console) -> None:
    """What one merge has that another has not: a line per task, then the layers that moved."""
    console.print(Text.assemble((f"{found.before} → {found.after}", "bold")))
    table = Table(box=None, header_style="dim")
    for column in ("task", "", "what", "metric", "before", "after"):
        table.add_column(column, justify="right" if column in ("before", "after") else "left")
    for task in found.tasks:
        table.add_row(
            task.task,
            task.change,
            ", ".join(task.parts),
            task.metric or "",
            _percent(task.before),
            _percent(task.after),
        )
    console.print(table)
    if found.same_backbone:
        console.print(Text("the backbone is the same, bit for bit", style="dim"))
        return
    layers = Table(box=None, header_style="dim")
    for column in ("layer", "backbone moved", "coefficients moved"):
        layers.add_column(column, justify="left" if column == "layer" else "right")
    moved = sorted(found.layers, key=lambda layer: -layer.backbone)
    for layer in moved[:_LAYERS]:
        layers.add_row(layer.layer, f"{100 * layer.backbone:.2f} %", f"{layer.coefficients:.4f}")
    console.print(layers)
    if len(moved) > _LAYERS:
        console.print(Text(f"and {len(moved) - _LAYERS} layers that moved less", style="dim"))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
