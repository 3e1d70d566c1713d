"""The tree of versions that a merge is in: what ``tintray history`` answers, at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.records import Record
from tintray.storage.catalog.merge_list import MergeRow, read_tree


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


def history(merge: str, *, catalog: str | None = None) -> list[Version]:
    """Every version in the tree that a merge is in, oldest first.

    Raises NotFoundError with the nearest name, if the catalog has no such merge.
    """
    _, catalog = chosen(None, catalog)
    name, _, version = merge.partition("/")
    rows = read_tree(catalog, name) or []
    if not any(not row.removed and version in ("", f"v{row.version}") for row in rows):
        rows = _found(merge, catalog)
    return [_version(row) for row in rows]


def _found(merge: str, catalog: str) -> list[MergeRow]:
    """The same of what is no plain name, or not there."""
    # Imported where it is needed: with SQLAlchemy it takes longer than what is asked of it.
    from tintray.storage.artifacts.aliases import split_alias
    from tintray.storage.catalog.catalog import Catalog

    with as_input_error(), Catalog.open(catalog, create=False) as opened:
        aliased = split_alias(merge)
        return opened.merges.tree(opened.merges.find(aliased[0] if aliased else merge).name)


def _version(row: MergeRow) -> Version:
    change = row.metrics.get("change") or {}
    return Version(
        ref=f"{row.name}/v{row.version}",
        parent=row.parent,
        created=row.published_at.isoformat(timespec="seconds"),
        operation=change.get("operation") or "merged",
        changed=change.get("tasks") or ([change["to"]] if change.get("to") else []),
        mode=change.get("mode"),
        tasks=row.metrics.get("tasks") or len(row.added),
        average=row.metrics.get("average"),
        normalised_accuracy=row.metrics.get("normalised_accuracy"),
        removed=row.removed,
    )
