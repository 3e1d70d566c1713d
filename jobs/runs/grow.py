"""Change a published merge: add, refresh or remove tasks, and publish the child beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

from tintray.errors import InputError, NotFoundError, ParentChangedError
from tintray.jobs.config.cluster_sections import Tracking
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.configs import TaskFacts
from tintray.jobs.events import Notice, OnEvent, ignore
from tintray.jobs.results import MergeSummary, ValidationReport
from tintray.jobs.runs.add import GrowthPlan, check_mode
from tintray.jobs.runs.change import Change, overridden, read_tasks, refreshed
from tintray.jobs.runs.guard import Asked
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.outcome import Lineage
from tintray.jobs.runs.parent import Parent, child_base, make_known, open_parent
from tintray.jobs.runs.pipeline import backend_for, execute, on_gpus_there, open_store_and_catalog
from tintray.jobs.runs.remove import plan_removal
from tintray.jobs.runs.summaries import summary
from tintray.jobs.runs.validation import report
from tintray.jobs.tracking.tracker import check_tracker
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog

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
    return _grow(merge, adding(tasks), mode, **options)


def remove(merge: str, tasks: Sequence[str], **options: Unpack[Options]) -> MergeSummary:
    """Publish a child of ``merge`` without these tasks."""
    return _grow(merge, removing(tasks), "auto", **options)


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
    return _grow(merge, refreshing(task, expert, pool), mode, **options)


Wish = Callable[[Parent], Change]
"""What is asked of a merge, once it is known which version grows."""


def adding(files: Sequence[str | Path]) -> Wish:
    """The tasks of these files, to add."""
    new = tuple(task for path in files for task in read_tasks(Path(path)))
    change = Change("add", tuple(task.name for task in new), new)
    return lambda _: change


def removing(tasks: Sequence[str]) -> Wish:
    """Tasks to remove, each once."""
    change = Change("remove", tuple(dict.fromkeys(tasks)))
    return lambda _: change


def refreshing(task: str, expert: str | None, pool: str | None) -> Wish:
    """A task to refresh; relative locations start from the current folder."""
    places = {"expert": expert, "pool": pool}

    def change(parent: Parent) -> Change:
        return refreshed(parent.spec, task, str(parent.ref), **places, folder=Path.cwd())

    return change


def rehearse(
    merge: str,
    wish: Wish,
    mode: Asked = "auto",
    *,
    store: str | None = None,
    catalog: str | None = None,
    overrides: Sequence[str] = (),
) -> ValidationReport:
    """What a change would have of each task: it is checked in this process, and not made.

    Raises InputError as the change itself would, before it computes.
    """
    store, catalog = chosen(store, catalog)
    parent = open_parent(merge, store=store, catalog=catalog)
    check_mode(parent, mode)
    change = wish(parent)
    spec = overridden(change.applied(parent.spec, str(parent.ref)), overrides).here()
    parent.check_files(change.names)
    base = child_base(parent, change, spec)
    lineage = Lineage(parent, change, parent.ref.version)
    facts: Mapping[str, TaskFacts] = {}
    if change.operation != "remove":
        with backend_for(spec, base) as backend:
            facts = GrowthPlan(lineage, spec, base, mode).checked(backend).facts
    own = {task.name: task.tint_parameters for task in parent.manifest.tasks}
    return report(spec, base, facts, own=own)


def _grow(
    merge: str,
    change: Wish,
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


def _tracking(parent: Parent, catalog: Catalog, on_event: OnEvent) -> Tracking:
    """Who is told of a change: who was told of the job that made its parent.

    The catalog says who; a merge that somebody else made names nobody.
    """
    try:
        found = JobSpec.from_record(catalog.jobs.get(parent.manifest.job_id).spec).tracking
        check_tracker(found)
    except NotFoundError:
        return None
    except InputError as error:
        on_event(Notice(f"{error}; this change is not told there"))
        return None
    return found


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
        spec = spec.changed(tracking=_tracking(parent, catalog, on_event))
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
