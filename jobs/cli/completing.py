"""What a shell is offered to complete: the names of one's own merges, jobs and tasks, and fields.

Whatever goes wrong, nothing is offered: a shell has no place for a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from tintray.errors import TintrayError

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_TASKS = "tasks."


def _offering(names: Callable[[click.Context, str], Iterable[str]]) -> Complete:
    """A completion by what names begin with; ``names`` is told what is typed so far."""

    def complete(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
        try:
            known = names(context, typed)
        except TintrayError:
            return []
        return [CompletionItem(name) for name in known if name.startswith(typed)]

    return complete


def _places(context: click.Context) -> tuple[str, str]:
    """The store and the catalog."""
    from tintray.jobs.config.settings import chosen

    store = context.params.get("store") or context.params.get("job_store")
    return chosen(store, context.params.get("catalog"))


def _first(context: click.Context, argument: str) -> str | None:
    """The command's first argument; click leaves it unread where an option waits for its value."""
    found = context.params.get(argument) or next(iter(context.args), None)
    return None if found is None else str(found)


def _names(context: click.Context, what: str, *values: str) -> list[str]:
    from tintray.storage.catalog.merge_list import read_names

    return read_names(_places(context)[1], what, *values)


def _tasks(context: click.Context, _: str) -> list[str]:
    """Those of the merge; of any, where the shell asks before it is known."""
    merge = (_first(context, "merge") or "").partition("/")[0].partition("@")[0]
    return _names(context, "task", merge) if merge else _names(context, "any task")


def _fields(context: click.Context, _: str) -> list[str]:
    from tintray.jobs.config.reference import notes

    return [note.path for note in notes()]


def _overrides(context: click.Context, typed: str) -> list[str]:
    """Fields of a job file, with those of each of its tasks where the file is known."""
    from tintray.jobs.config.reference import CONFIGURATION, notes

    fields = [note.path for note in notes() if not note.section]
    if not typed.startswith(_TASKS):
        return [f"{path}=" for path in fields if not path.startswith((CONFIGURATION, _TASKS))]
    ends = [path.removeprefix(_TASKS) for path in fields if path.startswith(_TASKS)]
    return [f"{_TASKS}{name}.{end}=" for name in _names_of_tasks(context) for end in ends]


def _names_of_tasks(context: click.Context) -> list[str]:
    from tintray.jobs.config.documents import read_document

    job = _first(context, "job")
    found = read_document(Path(job)).value.get("tasks") if job else ()
    names = (task.get("name") for task in found if isinstance(task, dict)) if found else ()
    return [name for name in names if isinstance(name, str)]


def _methods(_: click.Context, __: str) -> list[str]:
    from tintray.jobs.config.reference import find

    return find("merge.method")[0].values.split(", ")


def _merges(context: click.Context, typed: str) -> list[str]:
    name, mark, _ = typed.partition("@")
    return (
        _aliases(context, name) if mark else _names(context, "version" if "/" in typed else "merge")
    )


def _aliases(context: click.Context, name: str) -> list[str]:
    """Those of a merge in a folder: a shell does not wait for a store that is far away."""
    from tintray.storage.artifacts.aliases import MARK, aliases_of
    from tintray.storage.artifacts.store import open_store
    from tintray.storage.artifacts.urls import local_folder

    store, _ = _places(context)
    if local_folder(store) is None:
        return []
    return [f"{name}{MARK}{alias}" for alias in aliases_of(open_store(store), name)]


merges = _offering(_merges)
jobs = _offering(lambda context, _: ["latest", *_names(context, "job")])
names_of_jobs = _offering(lambda context, _: _names(context, "job's name"))
tasks = _offering(_tasks)
methods = _offering(_methods)
fields = _offering(_fields)
overrides = _offering(_overrides)
growth_overrides = _offering(
    lambda context, typed: [
        path for path in _overrides(context, typed) if path.startswith("growth.")
    ]
)
