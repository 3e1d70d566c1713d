"""What the commands on a growing merge do, as Python calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tintray.jobs.config.settings import chosen
from tintray.jobs.events import OnEvent, ignore
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs.growth.change import Change, addition, overridden, read_tasks, refreshed
from tintray.jobs.runs.growth.decisions import Asked
from tintray.jobs.runs.growth.history import rollback as publish_again
from tintray.jobs.runs.growth.run import grow
from tintray.jobs.runs.publication import summary
from tintray.storage.artifacts.store import open_store


def add(
    merge: str,
    tasks: Sequence[str | Path],
    *,
    store: str | None = None,
    catalog: str | None = None,
    mode: Asked = "auto",
    rebase: bool = False,
    overrides: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> MergeSummary:
    """Publish a child of ``merge`` with the tasks of these files too."""
    store, catalog = chosen(store, catalog)
    change = addition([task for path in tasks for task in read_tasks(Path(path))])
    return _grown(merge, change, store, catalog, mode, rebase, overrides, on_event)


def remove(
    merge: str,
    tasks: Sequence[str],
    *,
    store: str | None = None,
    catalog: str | None = None,
    rebase: bool = False,
    overrides: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> MergeSummary:
    """Publish a child of ``merge`` without these tasks."""
    store, catalog = chosen(store, catalog)
    change = Change("remove", tuple(dict.fromkeys(tasks)))
    return _grown(merge, change, store, catalog, "auto", rebase, overrides, on_event)


def refresh(
    merge: str,
    task: str,
    *,
    store: str | None = None,
    catalog: str | None = None,
    expert: str | None = None,
    pool: str | None = None,
    mode: Asked = "auto",
    rebase: bool = False,
    overrides: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> MergeSummary:
    """Publish a child of ``merge`` with a task anew: its expert, its pool, or what lies there."""
    store, catalog = chosen(store, catalog)
    manifest = grow(
        merge,
        lambda parent: refreshed(parent.spec, task, expert=expert, pool=pool, folder=Path.cwd()),
        store=store,
        catalog=catalog,
        mode=mode,
        rebase=rebase,
        adjust=lambda spec: overridden(spec, overrides),
        on_event=on_event or ignore,
    )
    return _summary(manifest, store)


def rollback(
    merge: str, to: str | None = None, *, store: str | None = None, catalog: str | None = None
) -> MergeSummary:
    """Publish an earlier version of ``merge`` again, as its newest."""
    store, catalog = chosen(store, catalog)
    manifest = publish_again(merge, to, store=store, catalog=catalog)
    return _summary(manifest, store)


def _grown(
    merge: str,
    change: Change,
    store: str,
    catalog: str,
    mode: Asked,
    rebase: bool,
    overrides: Sequence[str],
    on_event: OnEvent | None,
) -> MergeSummary:
    manifest = grow(
        merge,
        lambda _: change,
        store=store,
        catalog=catalog,
        mode=mode,
        rebase=rebase,
        adjust=lambda spec: overridden(spec, overrides),
        on_event=on_event or ignore,
    )
    return _summary(manifest, store)


def _summary(manifest: Mapping[str, Any], store: str) -> MergeSummary:
    ref = f"{manifest['name']}/v{manifest['version']}"
    return summary(manifest, f"{open_store(store).url}/merges/{ref}")
