"""The commands on a merge that grows: add, remove, refresh, history, rollback, and diff of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tintray.jobs.cli.options import (
    Command,
    debug_option,
    factory_option,
    json_option,
    merge_argument,
    place_options,
    quiet_stdout,
    write,
)

_mode_option = click.option(
    "--mode",
    type=click.Choice(["auto", "tint", "coefficients", "joint"]),
    default="auto",
    show_default=True,
    help="The way of growing: tint leaves the backbone as it is, coefficients adds the new tasks "
    "to it, joint learns everything on; auto takes the cheapest that is enough.",
)
_rebase_option = click.option(
    "--rebase",
    is_flag=True,
    help="If a newer version is published meanwhile, do it again from there.",
)
_set_option = click.option(
    "--set",
    "overrides",
    metavar="growth.FIELD=VALUE",
    multiple=True,
    help="Override how the merge grows, such as growth.tolerance=0.5. May be repeated.",
)


def _growing(command: Command) -> Command:
    """Give a command the options that every change of a merge has."""
    return _rebase_option(
        _set_option(factory_option(place_options(json_option(debug_option(command)))))
    )


def _run(change: str, merge: str, *arguments: Any, as_json: bool, **options: Any) -> None:
    """Make a change of a merge, show its progress, and write what it published."""
    from tintray.jobs.cli.tables import print_summary
    from tintray.jobs.config.settings import chosen
    from tintray.jobs.display.progress import watch

    where, database = chosen(options.pop("store"), options.pop("catalog"))
    with quiet_stdout(), watch() as on_event:
        from tintray.jobs.runs import grow as api

        made = getattr(api, change)(
            merge, *arguments, store=where, catalog=database, on_event=on_event, **options
        )
    write(made, print_summary, as_json=as_json)


@click.command()
@merge_argument
@click.option(
    "--task",
    "tasks",
    metavar="FILE.yaml",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A file with a task as in a job file, or with several. May be repeated: one job adds all.",
)
@_mode_option
@_growing
def add(merge: str, tasks: tuple[Path, ...], **options: Any) -> None:
    """Publish a child of MERGE that has these tasks too.

    Nothing is published if an old task would lose more than growth.tolerance; the exit code is 1
    then. A new task below growth.target is published, and the result says so. The experts of the
    old tasks are not needed.

    \b
    Example:
      tintray add ten-scripts --task eleventh.yaml
    """
    _run("add", merge, tasks, **options)


@click.command()
@merge_argument
@click.option(
    "--task", "tasks", metavar="NAME", multiple=True, required=True, help="A task to take out."
)
@_growing
def remove(merge: str, tasks: tuple[str, ...], **options: Any) -> None:
    """Publish a child of MERGE without a task.

    Its part of the backbone is taken out exactly; tints that lose by it are learned again. What
    all tasks learned together to correct the backbone stays, and the result says so.

    \b
    Example:
      tintray remove ten-scripts --task mnist
    """
    _run("remove", merge, tasks, **options)


@click.command()
@merge_argument
@click.option("--task", metavar="NAME", required=True, help="The task to refresh.")
@click.option("--expert", metavar="MODEL", help="Its new expert [default: the same place].")
@click.option("--pool", metavar="FILE", help="Its new pool [default: the same place].")
@_mode_option
@_growing
def refresh(merge: str, task: str, expert: str | None, pool: str | None, **options: Any) -> None:
    """Publish a child of MERGE with a task anew.

    With another expert or another pool, or with what lies at the same place by now.

    \b
    Example:
      tintray refresh ten-scripts --task mnist --expert zoo/mnist-2
    """
    _run("refresh", merge, task, expert=expert, pool=pool, **options)


@click.command()
@merge_argument
@place_options
@json_option
@debug_option
def history(merge: str, store: str | None, catalog: str | None, as_json: bool) -> None:
    """Draw which version of MERGE grew from which, and how.

    \b
    Example:
      tintray history ten-scripts
    """
    from tintray.jobs.cli.growth_tables import print_history
    from tintray.jobs.config.settings import chosen

    _, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.runs.history import history as versions

        found = versions(merge, catalog=database)
    write(found, print_history, as_json=as_json)


@click.command()
@merge_argument
@click.option("--to", metavar="VERSION", help="An ancestor, such as v1 [default: the parent].")
@place_options
@json_option
@debug_option
def rollback(
    merge: str, to: str | None, store: str | None, catalog: str | None, as_json: bool
) -> None:
    """Publish an earlier version of MERGE again, as its newest.

    Nothing is undone: versions never change, and the new one says where it came from.

    \b
    Example:
      tintray rollback ten-scripts --to v2
    """
    from tintray.jobs.cli.tables import print_summary
    from tintray.jobs.config.settings import chosen

    where, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.runs.history import rollback as publish_again

        made = publish_again(merge, to, store=where, catalog=database)
    write(made, print_summary, as_json=as_json)


def diff_merges(before: str, after: str, catalog: str | None, as_json: bool) -> None:
    """Show what changed from one merge to another; ``tintray diff`` calls it."""
    from tintray.jobs.cli.growth_tables import print_merge_difference
    from tintray.jobs.config.settings import chosen

    _, database = chosen(None, catalog)
    with quiet_stdout():
        from tintray.jobs.runs.history import diff_merges as differences

        found = differences(before, after, catalog=database)
    write(found, print_merge_difference, as_json=as_json)
