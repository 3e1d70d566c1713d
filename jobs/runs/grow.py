"""Change a published merge: add, refresh or remove tasks, and publish the child beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

from tintray.errors import ParentChangedError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import chosen
from tintray.jobs.events import Notice, OnEvent, ignore
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs.add import GrowthPlan, check_mode
from tintray.jobs.runs.change import Change, overridden, read_tasks, refreshed
from tintray.jobs.runs.guard import Asked
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.outcome import Lineage
from tintray.jobs.runs.parent import Parent, child_base, make_known, open_parent
from tintray.jobs.runs.pipeline import execute, on_gpus_there, open_store_and_catalog
from tintray.jobs.runs.remove import plan_removal
from tintray.jobs.runs.summaries import summary
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.store import open_store

_REBASES = 5


class Options(TypedDict, total=False):
    """What every change takes; ``overrides`` are of the section ``growth``, as ``--set`` has them.

    With ``rebase`` a change during which a newer version came is done again from there.
    """

    store: str | None
    catalog: str | None
    rebase: bool
    overrides: Sequence[str]
    on_event: OnEvent | None


def add(
    merge: str, tasks: Sequence[str | Path], *, mode: Asked = "auto", **options: Unpack[Options]
) -> MergeSummary:
    """Publish a child of ``merge`` with the tasks of these files too."""
    new = tuple(task for path in tasks for task in read_tasks(Path(path)))
    change = Change("add", tuple(task.name for task in new), new)
    return _grow(merge, lambda _: change, mode, **options)


def remove(merge: str, tasks: Sequence[str], **options: Unpack[Options]) -> MergeSummary:
    """Publish a child of ``merge`` without these tasks."""
    change = Change("remove", tuple(dict.fromkeys(tasks)))
    return _grow(merge, lambda _: change, "auto", **options)


def refresh(
    merge: str,
    task: str,
    *,
    expert: str | None = None,
    pool: str | None = None,
    mode: Asked = "auto",
    **options: Unpack[Options],
) -> MergeSummary:
    """Publish a child of ``merge`` with a task anew: its expert, its pool, or what lies there."""

    def change(parent: Parent) -> Change:
        places = {"expert": expert, "pool": pool}
        return refreshed(parent.spec, task, str(parent.ref), **places, folder=Path.cwd())

    return _grow(merge, change, mode, **options)


def _grow(
    merge: str,
    change: Callable[[Parent], Change],
    mode: Asked,
    *,
    store: str | None = None,
    catalog: str | None = None,
    rebase: bool = False,
    overrides: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> MergeSummary:
    """Publish a child of a merge: of its newest version, or of that which is named.

    Raises InputError before compute is spent, if the change cannot be made; GuardError if an old
    task would lose more than the tolerance; ParentChangedError if a newer version came meanwhile,
    without ``rebase``; with it, it is done again from there.
    """
    store, catalog = chosen(store, catalog)
    on_event = on_event or ignore
    left = _REBASES if rebase else 1
    while True:
        parent = open_parent(merge, store=store, catalog=catalog)
        check_mode(parent, mode)
        left -= 1
        try:
            made = change(parent)
            spec = overridden(made.applied(parent.spec, str(parent.ref)), overrides)
            manifest = _grow_once(parent, made, spec, mode, "/" not in merge, on_event)
        except ParentChangedError as error:
            if not left:
                raise
            on_event(Notice(f"{error}; grows from the newest version now"))
            merge = parent.ref.name
        else:
            return summary(manifest, f"{open_store(store).url}/merges/{manifest.ref}")


def _grow_once(
    parent: Parent, change: Change, spec: JobSpec, mode: Asked, of_newest: bool, on_event: OnEvent
) -> Manifest:
    """Run a change; with ``of_newest`` any version that is newer than the parent is a conflict.

    A parent that was named by its version may be an older one: then the tree gets a branch.
    """
    spec = on_gpus_there(spec)
    parent.check_files(change.names)
    base = child_base(parent, change, spec)
    store, opened = open_store_and_catalog(spec)
    with opened as catalog:
        make_known(parent, catalog)
        head = parent.ref.version
        if not of_newest:
            head = max(catalog.merges.find(parent.ref.name).version, head)
        lineage = Lineage(parent, change, head)
        record = spec.record() | {"change": {"of": str(parent.ref), "operation": str(change)}}
        if change.operation == "remove":
            execution = partial(execute, plan_removal(lineage, spec, base))
        else:
            execution = partial(execute, GrowthPlan(lineage, spec, base, mode))
        run = JobRun(catalog.jobs.create(spec.name, record, str(spec.store)), catalog, on_event)
        with run.running():
            return execution(run, store)
