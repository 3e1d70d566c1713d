"""The commands on jobs and their queues: submit, ps, status, watch, logs, cancel and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tintray.jobs.cli import completing
from tintray.jobs.cli.helping import Command
from tintray.jobs.cli.options import (
    Answer,
    Duration,
    Later,
    address_option,
    catalog_of,
    catalog_options,
    command,
    debug_option,
    dry_run_option,
    flag,
    help_text,
    id_argument,
    job_argument,
    quiet_stdout,
    rehearsed,
    say,
    set_option,
    until_closed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tintray.jobs.config.job_file import JobSpec
    from tintray.jobs.queue import differences, following, handover, ray_jobs, submission, views
    from tintray.jobs.queue.views import JobStatus
    from tintray.jobs.records import Record
else:
    differences, following = Later("queue.differences"), Later("queue.following")
    handover = Later("queue.handover")
    ray_jobs, submission, views = map(Later, ("queue.ray_jobs", "queue.submission", "queue.views"))

EXIT_CODES = {"succeeded": 0, "failed": 1, "cancelled": 3, "lost": 4}
"""What `wait`, `watch` and `--watch` answer with, by the state that the job is in by then."""

_watch_option = flag("--watch", help="Follow it until it is over.")
_TOLD, _STATUS = "queue_tables.print_told", "queue_tables.print_status"


def _ended(job: JobStatus, table: str = _STATUS) -> Answer:
    """A job that was followed to its end, with the exit code of its state."""
    return Answer(job, EXIT_CODES.get(job.state, 0), table)


def _changed(job: JobStatus, catalog: str | None, watch: bool) -> Answer:
    """A job that was changed; with ``watch``, as it is when it has ended."""
    if not watch:
        return Answer(job)
    if job.over:
        return _ended(job, _TOLD)
    from tintray.jobs.display.progress import watch as display

    with display() as on_event:
        return _ended(following.watch(job.id, catalog=catalog, on_event=on_event))


@command(
    _TOLD,
    job_argument,
    address_option,
    click.option("--key", metavar="TEXT", help="Your own name for it: it is entered once."),
    click.option("--priority", type=int, default=0, help="The highest goes first [default: 0]."),
    _watch_option,
    flag("--dry-run", help="Check files, store and cluster, and enter nothing."),
    set_option,
    quick=True,
    example="submit job.yaml --key nightly-2026-02-01 --watch",
)
def submit(job: JobSpec, watch: bool, dry_run: bool, **options: Any) -> Answer:
    """Enter the job in JOB.yaml in the queue of a Ray cluster.

    It answers at once with the job's id. The same job with the same --key is entered once.
    """
    if dry_run:
        cluster = submission.check(job, **options)
        text = f"{job.name} can be entered in the queue of {cluster}"
        return rehearsed(text, name=job.name, cluster=cluster)
    entered = submission.submit(job, **options)
    if entered.cluster is not None and ray_jobs.is_reached_by_all(entered.cluster):
        say(
            f"note: the cluster at {entered.cluster} takes jobs without a token, and runs the "
            "code of whoever reaches it; start it with RAY_AUTH_MODE=token (docs/jobs.md)",
            err=True,
        )
    return _changed(entered, str(job.catalog), watch)


@command(
    "queue_tables.print_jobs",
    flag("--all", "everything", help="All jobs, however many."),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=20,
        show_default=True,
        metavar="N",
        help="The N newest jobs; those that are not over are always shown.",
    ),
    click.option(
        *("--state", "states"),
        multiple=True,
        metavar="STATE",
        help="Only those in a state, such as fitting or lost. May be repeated.",
    ),
    click.option(
        "--name",
        metavar="NAME",
        shell_complete=completing.names_of_jobs,
        help="Only those of this name.",
    ),
    catalog_options,
    quick=True,
    nothing="no such job; tintray submit JOB.yaml or tintray run JOB.yaml makes one",
    example="ps --state fitting --state lost",
)
def ps(
    everything: bool, limit: int, states: tuple[str, ...], name: str | None, catalog: str | None
) -> Sequence[Record]:
    """List the jobs, the newest first."""
    most = None if everything or states or name else limit
    return views.list_jobs(catalog=catalog, limit=most, states=states or None, name=name)


@command(_STATUS, id_argument, catalog_options, quick=True, example="status latest")
def status(job: str, catalog: str | None) -> Record:
    """Show all that is known of JOB.

    It comes from the catalog, so that the cluster may be gone.
    """
    return views.status(job, catalog=catalog)


@command(_STATUS, id_argument, catalog_options, watched=True, example="watch latest")
def watch(job: str, **options: Any) -> Answer:
    """Follow JOB until it is over.

    Leaving with Ctrl-C does not stop the job. The exit code tells how it ended: 0 succeeded,
    1 failed, 3 cancelled, 4 lost.
    """
    return _ended(following.watch(job, **options))


@click.command(
    cls=Command,
    help=help_text("Print what the driver of JOB said.", "logs -f latest", id_argument),
)
@id_argument
@flag("-f", "--follow", help="Go on until the job is over.")
@catalog_options
@flag(
    *("--json", "as_json"),
    help='Write each piece as a JSON object of its own, {"text": ...}, on a line of its own.',
)
@debug_option
def logs(job: str, follow: bool, job_store: str | None, catalog: str | None, as_json: bool) -> None:
    """Piece by piece, as they come: not one answer, as other commands give."""
    import json

    with quiet_stdout():
        found = catalog_of(job_store, catalog)
        pieces = following.logs(job, catalog=found, follow=follow)
    with until_closed():
        for piece in pieces:
            say(json.dumps({"text": piece}) if as_json else piece, nl=as_json)


@command(
    _TOLD,
    id_argument,
    click.option("--timeout", type=Duration(), metavar="TIME", help="Give up then."),
    catalog_options,
    example="wait ten-scripts-1a2b3c4d --timeout 3600",
)
def wait(job: str, **options: Any) -> Answer:
    """Wait until JOB is over.

    The exit code tells how it ended: 0 succeeded, 1 failed, 3 cancelled, 4 lost, 5 not in time.
    """
    return _ended(following.watch(job, **options), _TOLD)


@command(
    _TOLD,
    id_argument,
    catalog_options,
    flag("--discard", help="Delete its checkpoints too: it cannot go on."),
    flag("--no-wait", help="Only ask it to stop."),
    dry_run_option,
    example="cancel ten-scripts-1a2b3c4d",
)
def cancel(job: str, no_wait: bool, **options: Any) -> Any:
    """Stop JOB, and keep its last checkpoint.

    It stops at the end of its round.
    """
    found = submission.cancel(job, wait=not no_wait, **options)
    if not options["dry_run"]:
        return found
    kept = "deleted" if options["discard"] else "kept"
    stopped = () if found.state in EXIT_CODES and found.state != "lost" else ("be stopped",)
    saved = (f"have its checkpoint after round {found.checkpoint} {kept}",)
    would = " and ".join((*stopped, *(saved if found.checkpoint else ())))
    return rehearsed(f"{found.id} ({found.state}) would {would}", job=found.id, state=found.state)


_again = (id_argument, address_option, catalog_options, _watch_option, dry_run_option)


def _going_on(job: JobStatus, *, fresh: bool = False) -> Answer:
    """Where a job would go on that is not asked to yet."""
    first = "from its first round" + (", without its checkpoints" if fresh else "")
    begin = first if fresh or not job.checkpoint else f"after round {job.checkpoint}"
    where = f"when it is next at {job.cluster}" if job.cluster else "here"
    return rehearsed(f"{job.id} would go on {begin}, {where}", job=job.id, cluster=job.cluster)


@command(_TOLD, *_again, watched=True, example="resume ten-scripts-1a2b3c4d --watch")
def resume(job: str, catalog: str | None, watch: bool, dry_run: bool, **options: Any) -> Answer:
    """Let JOB go on from its last checkpoint.

    For a job that failed, was cancelled or was lost. It waits for its cluster, or the one at
    --address; a job that was run without a cluster goes on here.
    """
    again = submission.resume(job, catalog=catalog, dry_run=dry_run, **options)
    return _going_on(again) if dry_run else _changed(again, catalog, watch)


@command(_TOLD, *_again, watched=True, example="retry ten-scripts-1a2b3c4d")
def retry(job: str, catalog: str | None, watch: bool, dry_run: bool, **options: Any) -> Answer:
    """Start JOB over from its first round.

    For a job that failed, was cancelled or was lost; its checkpoints are deleted.
    """
    again = submission.resume(job, catalog=catalog, fresh=True, dry_run=dry_run, **options)
    return _going_on(again, fresh=True) if dry_run else _changed(again, catalog, watch)


@command(
    "queue_tables.print_difference",
    id_argument,
    click.argument("other", metavar="OTHER", shell_complete=completing.jobs),
    catalog_options,
    example="diff ten-scripts-1a2b3c4d job.yaml",
)
def diff(job: str, other: str, catalog: str | None) -> Record:
    """Show in what two jobs differ, or a job and a job file.

    OTHER may be a job file.
    """
    for text in (job, other):
        if "/" in text and not text.endswith((".yaml", ".yml")):
            raise click.UsageError(f"'{text}' is no job; `tintray diff-merges` compares two merges")
    return differences.diff(job, other, catalog=catalog)


@command(
    "queue_tables.print_clusters",
    click.option("--max-jobs", type=int, metavar="N", help="Let the cluster run N jobs at once."),
    flag("--tend", help="Stay, and hand over jobs that wait or were lost every few seconds."),
    address_option,
    dry_run_option,
    catalog_options,
    nothing="no cluster yet; tintray submit JOB.yaml --address URL makes one known",
    example="queue --max-jobs 4 --address http://head:8265",
)
def queue(
    max_jobs: int | None, tend: bool, catalog: str | None, dry_run: bool, **options: Any
) -> Any:
    """Show how many jobs run and wait on each cluster.

    With --max-jobs, let one run another number of them at once. With --tend it is a service: one
    that runs on the head, or anywhere, starts lost jobs again though nobody looks.
    """
    if max_jobs is not None:
        cluster = submission.set_limit(max_jobs, catalog=catalog, dry_run=dry_run, **options)
        if dry_run:
            text = f"{cluster} would run {max_jobs} jobs at once"
            return rehearsed(text, cluster=cluster, max_jobs=max_jobs)
    if tend:
        with views.opened(catalog) as (known, url):
            handover.tend(known, url, say)
    return views.list_clusters(catalog=catalog)
