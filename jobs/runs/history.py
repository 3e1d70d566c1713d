"""What became of a merge: its tree, what one version has that another has not, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tintray.errors import InputError, NotFoundError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import blobs_of, load_merge, locate
from tintray.jobs.results import MergeSummary, Record
from tintray.jobs.runs.parent import Parent, line, make_known, open_parent
from tintray.jobs.runs.publication import publication_time, write_merge
from tintray.jobs.runs.summaries import summary
from tintray.published.files import BACKBONE, tint_file
from tintray.published.manifest import Change
from tintray.published.merge import Merge
from tintray.storage.artifacts.aliases import split_alias
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.tables import Merge as Row


@dataclass(frozen=True)
class Version(Record):
    """One version of a merge in its tree."""

    ref: str  # "name/v3"
    parent: str | None
    created: str  # ISO 8601, UTC
    operation: str  # "merged", "add", "refresh", "remove", "rollback"
    changed: Sequence[str]  # the tasks that the operation was about
    mode: str | None  # how it grew
    tasks: int
    average: float | None
    normalised_accuracy: float | None
    removed: bool = False  # the merge is gone; its children are there


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


def history(merge: str, *, catalog: str | None = None) -> list[Version]:
    """Every version in the tree that a merge is in, oldest first.

    Raises NotFoundError with the nearest name, if the catalog has no such merge.
    """
    _, catalog = chosen(None, catalog)
    with as_input_error(), Catalog.open(catalog, create=False) as opened:
        aliased = split_alias(merge)
        name = opened.merges.find(aliased[0] if aliased else merge).name
        rows = {row.id: row for row in opened.merges.all(name)}
        for row in list(rows.values()):  # parents of other names, and such as were removed since
            while row.parent_id is not None and row.parent_id not in rows:
                parent = opened.merges.parent(row.ref)
                if parent is None:
                    break
                rows[parent.id] = row = parent
        return [_version(row, rows) for row in sorted(rows.values(), key=lambda row: row.id)]


def _version(row: Row, rows: Mapping[int, Row]) -> Version:
    change = row.metrics.get("change") or {}
    parent = rows.get(row.parent_id) if row.parent_id is not None else None
    return Version(
        ref=row.ref,
        parent=None if parent is None else parent.ref,
        created=(row.published_at or row.created_at).isoformat(timespec="seconds"),
        operation=change.get("operation") or "merged",
        changed=change.get("tasks") or ([change["to"]] if change.get("to") else []),
        mode=change.get("mode"),
        tasks=row.metrics.get("tasks") or len(row.added),
        average=row.metrics.get("average"),
        normalised_accuracy=row.metrics.get("normalised_accuracy"),
        removed=row.removed_at is not None,
    )


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


def rollback(
    merge: str, to: str | None = None, *, store: str | None = None, catalog: str | None = None
) -> MergeSummary:
    """Publish an earlier version of a merge again, as its newest.

    Nothing is undone: the versions in between stay, and the new one has the last as its parent.

    ``to`` is the version to go back to, ``name/v1`` or ``v1``; left out, the parent of the newest.

    Raises InputError if the merge has no parent, or ``to`` is not one of its ancestors.
    """
    store, catalog = chosen(store, catalog)
    now = open_parent(merge, store=store, catalog=catalog)
    before = _ancestor(now, to)
    with as_input_error(), Catalog.open(catalog) as opened:
        make_known(now, opened)
        head = max(opened.merges.find(now.ref.name).version, now.ref.version)
        change = Change(operation="rollback", tasks=[], to=str(before.ref))
        manifest = before.manifest.unpublished(
            created=publication_time(), parent=str(now.ref), change=change
        )
        content = (blobs_of(before.manifest), manifest, before.coefficients)
        published = write_merge(now.store, opened, now.ref.name, *content, head=head)
    return summary(published, f"{now.store.url}/merges/{published.ref}")


def way_back(
    merge: str, to: str | None = None, *, store: str | None = None, catalog: str | None = None
) -> tuple[str, str]:
    """The merge that ``rollback`` would start from, and the version that it would publish again."""
    store, catalog = chosen(store, catalog)
    now = open_parent(merge, store=store, catalog=catalog)
    return str(now.ref), str(_ancestor(now, to).ref)


def _ancestor(now: Parent, to: str | None) -> Parent:
    ancestors = dict(line(now))
    if not ancestors:
        raise InputError(f"{now.ref} grew from no merge; there is nothing to roll back to")
    there = [ref for ref, ancestor in ancestors.items() if ancestor is not None]
    said = ", ".join(ref if ref in there else f"{ref} (removed)" for ref in ancestors)
    wanted = next(iter(ancestors)) if to is None else to if "/" in to else f"{now.ref.name}/{to}"
    if wanted not in ancestors:
        raise NotFoundError(f"{now.ref} did not grow from {wanted}; it grew from {said}")
    ancestor = ancestors[wanted]
    if ancestor is None:
        ways = f"--to {there[0]} goes back to what is left" if there else "none of them is left"
        raise NotFoundError(
            f"{wanted}, which {now.ref} grew from, was removed; it grew from {said}; {ways}"
        )
    return ancestor
