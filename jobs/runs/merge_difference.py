"""What one version of a merge has that another has not: per task, and per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tintray.errors import InputError
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import load_merge, locate
from tintray.jobs.records import Record
from tintray.published.files import BACKBONE, tint_file
from tintray.published.merge import Merge


@dataclass(frozen=True)
class TaskDifference(Record):
    """One task in two merges."""

    task: str
    change: str  # "added", "removed", "changed", "same"
    parts: Sequence[str]  # what differs: "expert", "pool", "tint", "coefficients"
    metric: str | None
    before: float | None  # by that metric; None where it was measured by another
    after: float | None


@dataclass(frozen=True)
class LayerDifference(Record):
    """One layer unit in two merges."""

    layer: str
    backbone: float  # ‖θ_after − θ_before‖ / ‖θ_before‖
    coefficients: float  # mean |λ_after − λ_before| over the tasks of both; absent ones are 0


@dataclass(frozen=True)
class MergeDifference(Record):
    """What one merge has that another has not."""

    before: str
    after: str
    same_backbone: bool
    tasks: Sequence[TaskDifference]
    layers: Sequence[LayerDifference] = field(default_factory=list)


def diff_merges(before: str, after: str, *, catalog: str | None = None) -> MergeDifference:
    """What changed from one merge to another: per task, and per layer.

    Raises InputError if their layers are not the same, so that nothing can be compared.
    """
    _, catalog = chosen(None, catalog)
    one, other = (load_merge(locate(name, catalog)) for name in (before, after))
    if one.manifest.units != other.manifest.units:
        raise InputError(
            f"{before} and {after} have other layers ({len(one.manifest.units)} and "
            f"{len(other.manifest.units)} units); expected merges of one base, at one tint site"
        )
    names = list(dict.fromkeys([*one.tasks, *other.tasks]))
    same = one.manifest.files.get(BACKBONE) == other.manifest.files.get(BACKBONE)
    tasks, layers = [_task(one, other, n) for n in names], _layers(one, other, names, same)
    return MergeDifference(one.manifest.ref, other.manifest.ref, same, tasks, layers)


def _task(one: Merge, other: Merge, name: str) -> TaskDifference:
    before, after = (merge.task(name) if name in merge.tasks else None for merge in (one, other))
    metric = (after or one.task(name)).score.metric
    figures = [
        entry.score.merged if entry is not None and entry.score.metric == metric else None
        for entry in (before, after)
    ]
    change, parts = "added" if before is None else "removed", []
    if before is not None and after is not None:
        tints = [merge.manifest.files.get(tint_file(name)) for merge in (one, other)]
        differs = {
            "expert": before.expert.sha256 != after.expert.sha256,
            "pool": before.pool.sha256 != after.pool.sha256,
            "tint": tints[0] != tints[1],
            "coefficients": not torch.equal(_row(one, name), _row(other, name)),
        }
        parts = [part for part, is_other in differs.items() if is_other]
        change = "changed" if parts else "same"
    return TaskDifference(name, change, parts, metric, *figures)


def _row(merge: Merge, name: str) -> torch.Tensor:
    if name not in merge.tasks:
        return torch.zeros(len(merge.manifest.units))
    return merge.coefficients[merge.tasks.index(name)]


def _layers(one: Merge, other: Merge, names: Sequence[str], same: bool) -> list[LayerDifference]:
    rows = torch.stack([(_row(other, name) - _row(one, name)).abs() for name in names])
    moved = rows.mean(0).tolist()
    units = [unit.name for unit in one.manifest.units]
    shares = dict.fromkeys(units, 0.0) if same else _moved_shares(one, other, units)
    return [LayerDifference(unit, shares[unit], moved[index]) for index, unit in enumerate(units)]


def _moved_shares(one: Merge, other: Merge, units: Sequence[str]) -> dict[str, float]:
    """‖θ_after − θ_before‖ / ‖θ_before‖ of every unit: a tensor, a block, or the whole backbone."""
    squares = {unit: [0.0, 0.0] for unit in units}
    ordered, whole = sorted(units, key=len, reverse=True), units[0] if len(units) == 1 else None
    for name, tensor in one.backbone.items():
        unit = next((u for u in ordered if name == u or name.startswith(f"{u}.")), whole)
        if unit is None or name not in other.backbone:
            continue
        squares[unit][0] += float((other.backbone[name] - tensor).double().square().sum())
        squares[unit][1] += float(tensor.double().square().sum())
    return {unit: (d / n) ** 0.5 if n else 0.0 for unit, (d, n) in squares.items()}
