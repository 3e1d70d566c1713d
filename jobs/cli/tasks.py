"""The commands on the tasks of a merge: add-task, remove-task and refresh-task."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintray.jobs.cli import completing
from tintray.jobs.cli.options import (
    Answer,
    Later,
    command,
    dry_run_option,
    factory_option,
    flag,
    merge_argument,
    path_argument,
    place_options,
    signed_option,
)

if TYPE_CHECKING:
    from tintray.jobs.runs import grow
else:
    grow = Later("runs.grow")

MODES = ("auto", "tint", "coefficients", "joint")

_mode_option = click.option(
    "--mode",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="The way of growing: tint leaves the backbone as it is, coefficients adds the new tasks "
    "to it, joint learns everything on; auto takes the cheapest that is enough.",
)
_common = (
    flag("--rebase", help="If a newer version is published meanwhile, do it again from there."),
    click.option(
        *("--set", "overrides"),
        metavar="growth.FIELD=VALUE",
        multiple=True,
        shell_complete=completing.growth_overrides,
        help="Override how the merge grows, such as growth.tolerance=0.5. May be repeated.",
    ),
    factory_option,
    signed_option,
    dry_run_option,
    place_options,
)
_change = partial(command, "tables.print_summary", merge_argument, watched=True)


@_change(
    path_argument("files", metavar="FILE.yaml...", nargs=-1, required=True),
    *(_mode_option, *_common),
    example="add-task ten-scripts eleventh.yaml",
)
def add_task(merge: str, files: tuple[Path, ...], dry_run: bool, **options: Any) -> Any:
    """Publish a child of MERGE that has these tasks too.

    Each FILE.yaml has a task as in a job file, or several; one job adds all. Nothing is published
    if an old task would lose more than growth.tolerance; the exit code is 1 then. A new task below
    growth.target is published, and the result says so. The experts of the old tasks are not needed.
    """
    if dry_run:
        return _rehearsed(merge, grow.adding(files), **options)
    return grow.add(merge, files, **options)


@_change(
    click.argument(
        "tasks", metavar="TASK...", nargs=-1, required=True, shell_complete=completing.tasks
    ),
    *_common,
    example="remove-task ten-scripts mnist",
)
def remove_task(merge: str, tasks: tuple[str, ...], dry_run: bool, **options: Any) -> Any:
    """Publish a child of MERGE without a task.

    Its part of the backbone is taken out exactly; tints that lose by it are learned again. What
    all tasks learned together to correct the backbone stays, and the result says so.
    """
    if dry_run:
        return _rehearsed(merge, grow.removing(tasks), **options)
    return grow.remove(merge, tasks, **options)


@_change(
    click.argument("task", metavar="TASK", shell_complete=completing.tasks),
    click.option("--expert", metavar="MODEL", help="Its new expert [default: the same place]."),
    click.option("--pool", metavar="FILE", help="Its new pool [default: the same place]."),
    *(_mode_option, *_common),
    example="refresh-task ten-scripts mnist --expert zoo/mnist-2",
)
def refresh_task(
    merge: str, task: str, expert: str | None, pool: str | None, dry_run: bool, **options: Any
) -> Any:
    """Publish a child of MERGE with a task anew.

    With another expert or another pool, or with what lies at the same place by now.
    """
    if dry_run:
        return _rehearsed(merge, grow.refreshing(task, expert, pool), **options)
    return grow.refresh(merge, task, expert=expert, pool=pool, **options)


def _rehearsed(merge: str, wish: Any, *, rebase: bool, on_event: Any, **options: Any) -> Answer:
    """A change that is checked and not made."""
    return Answer(grow.rehearse(merge, wish, **options), table="tables.print_validation")
