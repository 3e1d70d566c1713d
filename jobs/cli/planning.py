"""``tintray plan``: what a job takes, before it starts."""

from __future__ import annotations

from pathlib import Path

import click

from tintray.jobs.cli.options import (
    Seconds,
    debug_option,
    job_argument,
    json_option,
    quiet_stdout,
    set_option,
    write,
)


@click.command()
@job_argument
@click.option("--pilot", is_flag=True, help="Rehearse it too, small, and extrapolate.")
@click.option(
    "--calibrate",
    "seconds",
    type=Seconds(min=0.1, max=3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to time the job's steps on this machine.",
)
@set_option
@json_option
@debug_option
def plan(job: Path, pilot: bool, seconds: float, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what the job in JOB.yaml would read, hold and compute.

    The exit code is 2 if it does not fit. Nothing is written; a pilot runs a few tasks for a few
    rounds on part of their pools, in a store of its own that is deleted.

    \b
    Example:
      tintray plan job.yaml --pilot
    """
    from tintray.jobs.config.job_file import load_spec
    from tintray.jobs.display.progress import watch

    spec = load_spec(job, overrides)
    with quiet_stdout(), watch() as on_event:
        from tintray.jobs.cli.plan_tables import print_plan
        from tintray.jobs.runs import plan as estimates

        report = estimates.plan(spec, pilot=pilot, seconds=seconds, on_event=on_event)
    write(report, print_plan, as_json=as_json)
    if not report.fits:
        raise click.exceptions.Exit(2)
