"""The commands that change a queue: submit, cancel, resume, retry and queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tintray.jobs.cli.following import end_with, watch_job
from tintray.jobs.cli.options import (
    address_option,
    at_once,
    catalog_option,
    debug_option,
    id_argument,
    job_argument,
    json_option,
    quiet_stdout,
    say,
    set_option,
    write,
)

if TYPE_CHECKING:
    from tintray.jobs.queue.views import JobStatus

watch_option = click.option("--watch", is_flag=True, help="Follow it until it is over.")


@click.command()
@job_argument
@address_option
@click.option("--key", metavar="TEXT", help="Your own name for it: entered once, however often.")
@click.option("--priority", type=int, default=0, help="The highest goes first [default: 0].")
@watch_option
@set_option
@json_option
@debug_option
def submit(
    job: Path,
    address: str | None,
    key: str | None,
    priority: int,
    watch: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Enter the job in JOB.yaml in the queue of a Ray cluster.

    It answers at once with the job's id. The same job with the same --key is entered once.

    \b
    Example:
      tintray submit job.yaml --key nightly-2026-02-01 --watch
    """
    with at_once(), quiet_stdout():
        from tintray.jobs.config.job_file import load_spec
        from tintray.jobs.queue import submission
        from tintray.jobs.queue.ray_jobs import is_reached_by_all

        spec = load_spec(job, overrides)
        entered = submission.submit(spec, key=key, priority=priority, address=address)
        if entered.cluster is not None and is_reached_by_all(entered.cluster):
            say(
                f"note: the cluster at {entered.cluster} takes jobs without a token, and runs the "
                "code of whoever reaches it; start it with RAY_AUTH_MODE=token (docs/jobs.md)",
                err=True,
            )
    _told(entered, str(spec.catalog), watch, as_json)


@click.command()
@id_argument
@catalog_option
@click.option("--discard", is_flag=True, help="Delete its checkpoints too: it cannot go on.")
@click.option("--no-wait", is_flag=True, help="Only ask it to stop.")
@json_option
@debug_option
def cancel(job: str, catalog: str | None, discard: bool, no_wait: bool, as_json: bool) -> None:
    """Stop JOB, and keep its last checkpoint.

    It stops at the end of its round. JOB is the id of a job, how one begins, a name, or latest.

    \b
    Example:
      tintray cancel ten-scripts-1a2b3c4d
    """
    with quiet_stdout():
        from tintray.jobs.queue import submission

        stopped = submission.cancel(job, catalog=catalog, wait=not no_wait, discard=discard)
    _told(stopped, catalog, False, as_json)


@click.command()
@id_argument
@address_option
@catalog_option
@watch_option
@json_option
@debug_option
def resume(job: str, address: str | None, catalog: str | None, watch: bool, as_json: bool) -> None:
    """Let JOB go on from its last checkpoint.

    For a job that failed, was cancelled or was lost. It waits for its cluster, or the one at
    --address; a job that was run without a cluster goes on here. JOB is the id of a job, how one
    begins, a name, or latest.

    \b
    Example:
      tintray resume ten-scripts-1a2b3c4d --watch
    """
    _again("resume", job, address, catalog, watch, as_json)


@click.command()
@id_argument
@address_option
@catalog_option
@watch_option
@json_option
@debug_option
def retry(job: str, address: str | None, catalog: str | None, watch: bool, as_json: bool) -> None:
    """Start JOB over from its first round.

    For a job that failed, was cancelled or was lost; its checkpoints are deleted. JOB is the id of
    a job, how one begins, a name, or latest.

    \b
    Example:
      tintray retry ten-scripts-1a2b3c4d
    """
    _again("retry", job, address, catalog, watch, as_json)


@click.command()
@click.option("--max-jobs", type=int, metavar="N", help="Let the cluster run N jobs at once.")
@address_option
@catalog_option
@json_option
@debug_option
def queue(max_jobs: int | None, address: str | None, catalog: str | None, as_json: bool) -> None:
    """Show how many jobs run and wait on each cluster.

    With --max-jobs, let one run another number of them at once.

    \b
    Example:
      tintray queue --max-jobs 4 --address http://head:8265
    """
    with quiet_stdout():
        from tintray.jobs.queue import submission, views

        if max_jobs is not None:
            submission.set_limit(max_jobs, address=address, catalog=catalog)
        clusters = views.list_clusters(catalog=catalog)
        from tintray.jobs.cli.queue_tables import print_clusters
    if not clusters:
        click.echo(
            "no cluster yet; tintray submit JOB.yaml --address URL makes one known", err=True
        )
    if clusters or as_json:
        write(clusters, print_clusters, as_json=as_json)


def _again(
    what: str, job: str, address: str | None, catalog: str | None, watch: bool, as_json: bool
) -> None:
    from tintray.jobs.display.progress import watch as display

    with quiet_stdout(), display() as on_event:
        from tintray.jobs.queue import submission

        call = submission.resume if what == "resume" else submission.retry
        found = call(job, catalog=catalog, address=address, on_event=on_event)
    _told(found, catalog, watch, as_json)


def _told(job: JobStatus, catalog: str | None, watch: bool, as_json: bool) -> None:
    """Tell of a job that was changed, or follow it if that was asked for."""
    from tintray.jobs.cli.queue_tables import print_status, print_told

    if watch and not job.over:
        job = watch_job(job.id, catalog)
        write(job, print_status, as_json=as_json)
        end_with(job)
        return
    write(job, print_told, as_json=as_json)
    if watch:
        end_with(job)
