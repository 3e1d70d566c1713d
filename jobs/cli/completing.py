"""What a shell is offered to complete: the names of one's own merges, jobs and tasks, and fields.

Whatever goes wrong, nothing is offered: a shell has no place for a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from tintray.errors import TintrayError

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offering(names: Callable[[click.Context, str], Iterable[str]]) -> Complete:
    """A completion by what names begin with; ``names`` is told what is typed so far."""

    def complete(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
        try:
            known = names(context, typed)
        except TintrayError:
            return []
        return [CompletionItem(name) for name in known if name.startswith(typed)]

    return complete


def _catalog(context: click.Context) -> str:
    from tintray.jobs.config.settings import chosen

    store = context.params.get("store") or context.params.get("job_store")
    return chosen(store, context.params.get("catalog"))[1]


def _names(context: click.Context, what: str, *values: str) -> list[str]:
    from tintray.storage.catalog.merge_list import read_names

    return read_names(_catalog(context), what, *values)


def _tasks(context: click.Context, _: str) -> list[str]:
    """Those of the merge; of any, where the shell asks before it is known."""
    merge = str(context.params.get("merge") or "").partition("/")[0]
    return _names(context, "task", merge) if merge else _names(context, "any task")


def _fields(end: str) -> Callable[[click.Context, str], Iterable[str]]:
    def paths(_: click.Context, __: str) -> Iterable[str]:
        from tintray.jobs.config.reference import CONFIGURATION, notes

        known = [note for note in notes() if not end or not note.section]
        return (
            note.path + end
            for note in known
            if not end or not note.path.startswith((CONFIGURATION, "tasks."))
        )

    return paths


def _methods(_: click.Context, __: str) -> list[str]:
    from tintray.jobs.config.reference import find

    return find("merge.method")[0].values.split(", ")


def _merges(context: click.Context, typed: str) -> list[str]:
    return _names(context, "version" if "/" in typed else "merge")


merges = _offering(_merges)
jobs = _offering(lambda context, _: ["latest", *_names(context, "job")])
tasks = _offering(_tasks)
methods = _offering(_methods)
fields = _offering(_fields(""))
overrides = _offering(_fields("="))
