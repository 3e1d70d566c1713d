"""The commands that merge models: run, plan, validate, merge and methods."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintray.jobs.cli import completing
from tintray.jobs.cli.options import (
    RECIPE,
    Answer,
    Duration,
    command,
    flag,
    job_argument,
    path_argument,
    path_option,
    rehearsed,
    set_option,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tintray.jobs.config.job_file import JobSpec
    from tintray.jobs.records import Record
    from tintray.jobs.results import MergeSummary


@command(
    "tables.print_summary",
    path_argument("job", metavar="[JOB.yaml]", required=False),
    path_option(
        "--from-mergekit",
        metavar="FILE",
        help="Merge whole checkpoints as this mergekit file says, instead of a job.",
    ),
    path_option(
        "--output",
        metavar="DIR",
        help="The folder to write with --from-mergekit; it must not exist.",
    ),
    click.option(
        "--memory", metavar="SIZE", help="What it may hold with --from-mergekit [default: 4GiB]."
    ),
    flag("--dry-run", help="Check it as validate does, and run nothing."),
    set_option,
    watched=True,
    example="run examples/digits.yaml --set fit.rounds=50\n"
    "run --from-mergekit ties.yaml --output merged",
)
def run(
    job: JobSpec | None,
    from_mergekit: Path | None,
    output: Path | None,
    memory: str | None,
    dry_run: bool,
    overrides: tuple[str, ...] = (),
    **options: Any,
) -> Answer | Path:
    """Run the job in JOB.yaml and publish its merge.

    With --from-mergekit, merge whole checkpoints by a data-free method, as mergekit's YAML
    describes it, into a folder.
    """
    from tintray.jobs import api

    if from_mergekit is not None or output is not None or memory is not None:
        of_job = job is not None or overrides or RECIPE in click.get_current_context().meta
        if from_mergekit is None or output is None or of_job:
            raise click.UsageError(
                "--from-mergekit FILE goes with --output DIR, without JOB.yaml and its options"
            )
        options["memory"] = memory or "4GiB"
        made = api.compose(from_mergekit, output, dry_run=dry_run, **options)
        return rehearsed(f"{made} can be written", path=None) if dry_run else made
    if job is None:
        raise click.UsageError("Missing argument 'JOB.yaml'.")
    if dry_run:
        return Answer(api.validate(job), table="tables.print_validation")

    def table(summary: MergeSummary, console: Console) -> None:
        from tintray.jobs.cli.tables import print_next, print_summary

        print_summary(summary, console)
        print_next(_next_commands(summary, job), console)

    return Answer(api.run(job, **options), table=table)


def _next_commands(summary: MergeSummary, spec: JobSpec) -> Mapping[str, str]:
    """What to type next, complete with the store where it is not the default one."""
    from tintray.jobs.config.settings import default_catalog, default_store
    from tintray.storage.secrets import shown_url

    words = [f"{summary.name}/{summary.version}"]
    store = default_store()
    if spec.store != store:
        store = spec.store
        words += ["--store", store]
    if spec.catalog != default_catalog(store):
        words += ["--catalog", shown_url(spec.catalog)]
    merge = shlex.join(words)
    return {
        f"tintray show {merge}": "this table again",
        f"tintray report {merge}": "all that is known of it, as a page",
        f"tintray compare {merge}": "beside the experts, averaging and task arithmetic",
        f"tintray export {merge} --task {summary.tasks[0].name} DIR": "a plain model of one task",
    }


@command(
    "plan_tables.print_plan",
    job_argument,
    flag("--pilot", help="Rehearse it too, small, and extrapolate."),
    click.option(
        *("--calibrate", "seconds"),
        type=Duration(least=0.1, most=3600),
        default=10.0,
        show_default=True,
        metavar="TIME",
        help="How long to time the job's steps on this machine.",
    ),
    set_option,
    watched=True,
    example="plan job.yaml --pilot",
)
def plan(job: JobSpec, **options: Any) -> Answer:
    """Say what the job in JOB.yaml would read, hold and compute.

    The exit code is 2 if it does not fit. Nothing is written; a pilot runs a few tasks for a few
    rounds on part of their pools, in a store of its own that is deleted.
    """
    from tintray.jobs.runs.plan import plan as estimate

    report = estimate(job, **options)
    return Answer(report, code=0 if report.fits else 2)


@command(
    *("tables.print_validation", job_argument, set_option), example="validate examples/digits.yaml"
)
def validate(job: JobSpec) -> Record:
    """Check JOB.yaml and all that it refers to.

    Nothing is written. One example of each task is run, so that what passes here does not fail in
    run for its input.
    """
    from tintray.jobs import api

    return api.validate(job)


@command(
    "",
    click.argument("experts", metavar="EXPERT...", nargs=-1, required=True),
    click.option("--base", required=True, metavar="MODEL", help="What the experts come from."),
    click.option(
        "--method",
        required=True,
        metavar="NAME",
        shell_complete=completing.methods,
        help="Such as ties: tintray methods.",
    ),
    path_option(
        "--output", required=True, metavar="DIR", help="The folder to write; it must not exist."
    ),
    click.option(
        *("--parameter", "parameters"),
        metavar="NAME=VALUE",
        multiple=True,
        help="A parameter of the method, such as density=0.2. May be repeated.",
    ),
    click.option("--scale", type=float, help="The scale [default: the method's own]."),
    click.option("--seed", type=int, default=0, help="The seed of random methods [default: 0]."),
    click.option("--memory", default="2GiB", metavar="SIZE", help="Its memory [default: 2GiB]."),
    click.option(
        "--shard", default="5GB", metavar="SIZE", help="The largest output file [default: 5GB]."
    ),
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        help="Where the method computes [default: cpu].",
    ),
    flag("--dry-run", help="Check all of it, and write nothing."),
    watched=True,
    example="merge llama-math llama-code --base llama --method ties --output merged",
)
def merge(
    base: str, experts: tuple[str, ...], output: Path, dry_run: bool, **options: Any
) -> Path | Answer:
    """Merge whole checkpoints into one, out of core.

    They are of one shape, heads included. Tensors are read, merged and written one after another
    within the memory given. For experts with heads of their own, run a job.
    """
    from tintray.jobs import api

    made = api.merge_checkpoints(base, experts, output, dry_run=dry_run, **options)
    return rehearsed(f"{made} can be written", path=None) if dry_run else made


@command(
    "method_tables.print_methods",
    click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=completing.methods),
    example="methods ties",
)
def methods(names: tuple[str, ...]) -> list[Any]:
    """List the merging methods, or say all about NAME.

    Each serves as merge.method or merge.init of a job and in compare --methods; those without data
    in merge --method too.
    """
    from tintray.jobs.runs.method_list import list_methods

    return list(list_methods(names))
