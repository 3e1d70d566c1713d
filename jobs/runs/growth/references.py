"""What the guard compares an old task with: its parent, and the version in which it was fitted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tintray.jobs.runs.growth.decisions import Figure
from tintray.jobs.runs.growth.parent import Parent


def references(parent: Parent, tasks: Iterable[str]) -> dict[str, tuple[Figure, ...]]:
    """By task: its figure in the parent, and that in the version in which it was fitted last."""
    return {name: (_figure(parent, name), fitted(parent, name)) for name in tasks}


def fitted(parent: Parent, task: str) -> Figure:
    """A task's figure in the version in which it was last merged, added or refreshed.

    A manifest names it, so that the version itself may be gone. For manifests of earlier versions
    of tintray, which do not, it is looked for, as far back as parents are still there.
    """
    entry = parent.merge.task(task)
    found = parent
    for version in _line(parent):
        if task not in version.merge.tasks or not _same(version.merge.task(task), entry):
            break
        found = version
        known = version.merge.task(task).get("fitted")
        if known is not None:
            return Figure(**known)
        change = version.manifest.get("change") or {"operation": "merged", "tasks": []}
        if change["operation"] in ("merged", "rollback") or task in change["tasks"]:
            break
    return _figure(found, task)


def _line(parent: Parent) -> Iterator[Parent]:
    """The merge, and then its ancestors: read only if they are needed, and once."""
    yield parent
    yield from parent.ancestry


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[what]["sha256"] == other[what]["sha256"] for what in ("expert", "pool"))


def _figure(version: Parent, task: str) -> Figure:
    score = version.merge.task(task)["score"]
    return Figure(str(version.ref), score["metric"], score["merged"])
