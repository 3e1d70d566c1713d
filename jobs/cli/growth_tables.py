"""A merge's tree and the difference of two merges, as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from tintray.jobs.cli.tables import table_of, title
from tintray.jobs.display.times import moment
from tintray.jobs.runs.history import Version
from tintray.tasks.metrics import find_metric

if TYPE_CHECKING:
    from tintray.jobs.runs.merge_difference import MergeDifference, TaskDifference

_LAYERS = 20  # as many as fit a terminal: those that changed most
_NAMES = 4  # of the tasks of one change, so that its line stays a line
_BAR = 24  # characters of the layer that moved most


def print_history(versions: Sequence[Version], console: Console) -> None:
    """The tree: each version below the one that it grew from."""
    nodes: dict[str, Tree] = {}
    roots: list[Tree] = []
    newest = max((n for n, version in enumerate(versions) if not version.removed), default=None)
    for number, version in enumerate(versions):
        label = _label(version, newest=number == newest)
        if version.parent in nodes:
            nodes[version.ref] = nodes[version.parent].add(label)
        else:
            nodes[version.ref] = Tree(label)
            roots.append(nodes[version.ref])
    for root in roots:
        console.print(root)


def _label(version: Version, *, newest: bool) -> Text:
    names, what = version.changed, version.operation
    if names:
        few = len(names) <= _NAMES + 1
        listed = ", ".join(names if few else names[:_NAMES])
        what += f" {listed}" + ("" if few else f" and {len(names) - _NAMES} more")
    if version.mode:
        what += f" ({version.mode})"
    told = [_tasks(version.tasks)]
    if version.normalised_accuracy is not None:
        told.append(f"{100 * version.normalised_accuracy:.1f} % of the experts")
    told.append(moment(version.created, "minutes"))
    if version.removed:
        told.append("removed")
    last = ("  newest", "green") if newest else ""
    return Text.assemble((version.ref, "bold"), f"  {what}  ", (", ".join(told), "dim"), last)


def _tasks(count: int, others: str = "") -> str:
    return f"{count} {others}task" + ("" if count == 1 else "s")


def print_merge_difference(found: MergeDifference, console: Console) -> None:
    """What one merge has that another has not: a line per task that changed, then the layers."""
    console.print(title(f"{found.before} → {found.after}"))
    changed = [task for task in found.tasks if task.change != "same" or task.before != task.after]
    if changed:
        columns = ("~task", "~what changed", "~metric", ">before", ">after", ">change")
        console.print(table_of(columns, map(_changes, changed)))
    same = len(found.tasks) - len(changed)
    if same:
        exactly = ", bit for bit" if found.same_backbone else ""
        others = _tasks(same, "other " if changed else "")
        console.print(Text(f"{others} as before{exactly}", style="dim"))
    if found.same_backbone:
        console.print(Text("the backbone is the same, bit for bit", style="dim"))
        return
    _print_layers(found, console)


def _print_layers(found: MergeDifference, console: Console) -> None:
    """How far each layer's tensors and coefficients moved, those that moved most."""
    moved = sorted(found.layers, key=lambda layer: -layer.backbone)
    most = max((layer.backbone for layer in moved), default=0.0) or 1.0
    rows = (
        (
            layer.layer,
            f"{100 * layer.backbone:.2f} %",
            Text("━" * round(_BAR * layer.backbone / most), style="cyan"),
            f"{layer.coefficients:.4f}",
        )
        for layer in moved[:_LAYERS]
    )
    console.print(table_of(("~layer", ">backbone moved", "", ">coefficients moved"), rows))
    if len(moved) > _LAYERS:
        console.print(Text(f"and {len(moved) - _LAYERS} layers that moved less", style="dim"))


def _changes(task: TaskDifference) -> list[str | Text]:
    """A row: the change is in points of a share, else in percent of before."""
    what = ", ".join(task.parts) or task.change.replace("same", "the backbone alone")
    if task.metric is None:
        return [task.task, what]
    metric, before, after = find_metric(task.metric), task.before, task.after
    told = ["" if value is None else metric.figure(value) for value in (before, after)]
    if before is None or after is None:
        return [task.task, what, task.metric, *told]
    gain = round(-metric.loss(before, after), 1)
    change = gain if not metric.lower else -gain
    style = "red" if gain < 0 else "green" if gain > 0 else "dim"
    unit = "" if metric.lost_in == "points" else f" {metric.lost_in}"
    shown = Text(f"{change:+.1f}{unit}" if gain else "0.0", style=style)
    return [task.task, what, task.metric, *told, shown]
