"""The commands that look at jobs: ps, status, watch, logs, wait and diff."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tintray.jobs.cli.growth import diff_merges
from tintray.jobs.cli.options import (
    Seconds,
    at_once,
    catalog_option,
    debug_option,
    id_argument,
    json_option,
    quiet_stdout,
    say,
    until_closed,
    write,
)

if TYPE_CHECKING:
    from tintray.jobs.queue.views import JobStatus

EXIT_CODES = {"succeeded": 0, "failed": 1, "cancelled": 3, "lost": 4}
"""What `wait`, `watch` and `--watch` answer with, by the state that the job is in by then."""


@click.command()
@click.option("--all", "everything", is_flag=True, help="All jobs, however many.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N",
              help="The N newest jobs; those that are not over are always shown.")  # fmt: skip
@click.option("--state", "states", multiple=True, metavar="STATE",
              help="Only those in a state, such as fitting or lost. May be repeated.")  # fmt: skip
@click.option("--name", metavar="NAME", help="Only those of this name.")
@catalog_option
@json_option
@debug_option
def ps(
    everything: bool,
    limit: int,
    states: tuple[str, ...],
    name: str | None,
    catalog: str | None,
    as_json: bool,
) -> None:
    """List the jobs, the newest first.

    \b
    Example:
      tintray ps --state fitting --state lost
    """
    with at_once(), quiet_stdout():
        from tintray.jobs.queue import views

        found = views.list_jobs(
            catalog=catalog,
            limit=None if everything or states or name else limit,
            states=states or None,
            name=name,
        )
        from tintray.jobs.cli.queue_tables import print_jobs
    if not found:
        click.echo(
            "no such job; tintray submit JOB.yaml or tintray run JOB.yaml makes one", err=True
        )
    if found or as_json:
        write(found, print_jobs, as_json=as_json)


@click.command()
@id_argument
@catalog_option
@json_option
@debug_option
def status(job: str, catalog: str | None, as_json: bool) -> None:
    """Show all that is known of JOB, also where its cluster is gone.

    JOB is the id of a job, how one begins, a name, or latest.

    \b
    Example:
      tintray status latest
    """
    with at_once(), quiet_stdout():
        from tintray.jobs.queue import views

        found = views.status(job, catalog=catalog)
        from tintray.jobs.cli.queue_tables import print_status
    write(found, print_status, as_json=as_json)


@click.command()
@id_argument
@catalog_option
@json_option
@debug_option
def watch(job: str, catalog: str | None, as_json: bool) -> None:
    """Follow JOB until it is over.

    Leaving with Ctrl-C does not stop the job. The exit code tells how it ended: 0 succeeded,
    1 failed, 3 cancelled, 4 lost. JOB is the id of a job, how one begins, a name, or latest.

    \b
    Example:
      tintray watch latest
    """
    from tintray.jobs.cli.queue_tables import print_status

    found = watch_job(job, catalog)
    write(found, print_status, as_json=as_json)
    end_with(found)


@click.command()
@id_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@catalog_option
@click.option("--json", "as_json", is_flag=True, help="Write each piece as a JSON object of its "
              'own, {"text": ...}, on a line of its own.')  # fmt: skip
@debug_option
def logs(job: str, follow: bool, catalog: str | None, as_json: bool) -> None:
    """Print what the driver of JOB said.

    JOB is the id of a job, how one begins, a name, or latest.

    \b
    Example:
      tintray logs -f latest
    """
    import json

    with quiet_stdout():
        from tintray.jobs.queue import following

        pieces = following.logs(job, catalog=catalog, follow=follow)
    with until_closed():
        for piece in pieces:
            say(json.dumps({"text": piece}) if as_json else piece, nl=as_json)


@click.command()
@id_argument
@click.option("--timeout", type=Seconds(min=0), metavar="SECONDS", help="Give up after this long.")
@catalog_option
@json_option
@debug_option
def wait(job: str, timeout: float | None, catalog: str | None, as_json: bool) -> None:
    """Wait until JOB is over.

    The exit code tells how it ended: 0 succeeded, 1 failed, 3 cancelled, 4 lost, 5 not in time.
    JOB is the id of a job, how one begins, a name, or latest.

    \b
    Example:
      tintray wait ten-scripts-1a2b3c4d --timeout 3600
    """
    with quiet_stdout():
        from tintray.jobs.queue import following

        found = following.wait(job, catalog=catalog, timeout=timeout)
        from tintray.jobs.cli.queue_tables import print_told
    write(found, print_told, as_json=as_json)
    end_with(found)


@click.command()
@click.argument("job", metavar="JOB")
@click.argument("other", metavar="OTHER")
@catalog_option
@json_option
@debug_option
def diff(job: str, other: str, catalog: str | None, as_json: bool) -> None:
    """Show in what two jobs, or two merges, differ.

    JOB is the id of a job, how one begins, a name, or latest; OTHER may be a job file too. Of two
    merges, each NAME/VERSION or a URL: what changed per task and per layer.

    \b
    Example:
      tintray diff ten-scripts-1a2b3c4d job.yaml
      tintray diff ten-scripts/v1 ten-scripts/v2
    """
    if _is_merge(job) and _is_merge(other):
        diff_merges(job, other, catalog, as_json)
        return
    with quiet_stdout():
        from tintray.jobs.cli.queue_tables import print_difference
        from tintray.jobs.queue import differences

        found = differences.diff(job, other, catalog=catalog)
    write(found, print_difference, as_json=as_json)


def _is_merge(text: str) -> bool:
    """Whether a word is a merge's: neither the id of a job nor a job file's name is like that."""
    return "/" in text and not text.endswith((".yaml", ".yml"))


def watch_job(job: str, catalog: str | None) -> JobStatus:
    """Follow a job on standard error until it is over."""
    from tintray.jobs.display.progress import watch as display

    with quiet_stdout(), display() as on_event:
        from tintray.jobs.queue import following

        return following.watch(job, catalog=catalog, on_event=on_event)


def end_with(job: JobStatus) -> None:
    """Exit as the state of a job says, unless it went well."""
    code = EXIT_CODES.get(job.state, 0)
    if code:
        raise click.exceptions.Exit(code)
