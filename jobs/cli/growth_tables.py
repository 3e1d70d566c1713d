"""A merge's tree and the difference of two merges, as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from tintray.jobs.cli.tables import open_table
from tintray.jobs.runs.history import MergeDifference, TaskDifference, Version
from tintray.tasks.metrics import find_metric

_LAYERS = 20  # as many as fit a terminal: those that changed most
_NAMES = 4  # of the tasks of one change, so that its line stays a line
_BAR = 24  # characters of the layer that moved most


def print_history(versions: Sequence[Version], console: Console) -> None:
    """The tree: each version below the one that it grew from."""
    nodes: dict[str, Tree] = {}
    roots: list[Tree] = []
    here = [version.ref for version in versions if not version.removed]
    for version in versions:
        label = _label(version, newest=bool(here) and version.ref == here[-1])
        above = nodes.get(version.parent) if version.parent is not None else None
        nodes[version.ref] = Tree(label) if above is None else above.add(label)
        if above is None:
            roots.append(nodes[version.ref])
    for root in roots:
        console.print(root)


def _label(version: Version, *, newest: bool) -> Text:
    what = version.operation
    if version.changed:
        what += f" {_listed(version.changed)}"
    if version.mode:
        what += f" ({version.mode})"
    told = [_tasks(version.tasks)]
    if version.normalised_accuracy is not None:
        told.append(f"{100 * version.normalised_accuracy:.1f} % of the experts")
    told.append(version.created[:16].replace("T", " "))
    if version.removed:
        told.append("removed")
    return Text.assemble(
        (version.ref, "bold"),
        f"  {what}  ",
        (", ".join(told), "dim"),
        ("  newest", "green") if newest else "",
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _NAMES + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMES])} and {len(names) - _NAMES} more"


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def print_merge_difference(found: MergeDifference, console: Console) -> None:
    """What one merge has that another has not: a line per task that changed, then the layers."""
    console.print(Text(f"{found.before} → {found.after}", style="bold"))
    changed = [task for task in found.tasks if task.change != "same" or task.before != task.after]
    if changed:
        table = open_table("~task", "~what changed", "~metric", ">before", ">after", ">change")
        for task in changed:
            table.add_row(
                task.task,
                Text(", ".join(task.parts) or task.change.replace("same", "the backbone alone")),
                task.metric or "",
                *_figures(task),
            )
        console.print(table)
    same = len(found.tasks) - len(changed)
    if same:
        others = "other " if changed else ""
        exactly = ", bit for bit" if found.same_backbone else ""
        console.print(
            Text(f"{_tasks(same).replace(' ', f' {others}', 1)} as before{exactly}", style="dim")
        )
    if found.same_backbone:
        console.print(Text("the backbone is the same, bit for bit", style="dim"))
        return
    _print_layers(found, console)


def _print_layers(found: MergeDifference, console: Console) -> None:
    """How far each layer's tensors and coefficients moved, those that moved most."""
    table = open_table("~layer", ">backbone moved", "", ">coefficients moved")
    moved = sorted(found.layers, key=lambda layer: -layer.backbone)
    most = max((layer.backbone for layer in moved), default=0.0)
    for layer in moved[:_LAYERS]:
        bar = "━" * round(_BAR * layer.backbone / most) if most else ""
        table.add_row(
            layer.layer,
            f"{100 * layer.backbone:.2f} %",
            Text(bar, style="cyan"),
            f"{layer.coefficients:.4f}",
        )
    console.print(table)
    if len(moved) > _LAYERS:
        console.print(Text(f"and {len(moved) - _LAYERS} layers that moved less", style="dim"))


def _figures(task: TaskDifference) -> tuple[str, str, Text]:
    """Before, after, and the change: in points of a share, else in percent of before."""
    if task.metric is None:
        return "", "", Text("")
    metric, before, after = find_metric(task.metric), task.before, task.after
    told = ["" if value is None else metric.figure(value) for value in (before, after)]
    if before is None or after is None:
        return told[0], told[1], Text("")
    gain = round(-metric.loss(before, after), 1)
    change = gain if not metric.lower else -gain
    style = "red" if gain < 0 else "green" if gain > 0 else "dim"
    unit = "" if metric.lost_in == "points" else f" {metric.lost_in}"
    return told[0], told[1], Text(f"{change:+.1f}{unit}" if gain else "0.0", style=style)
