"""Jobs, their queues and their differences as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from tintray.jobs.cli.columns import print_columns
from tintray.jobs.cli.tables import print_facts, print_next, table_of, title
from tintray.jobs.display.times import moment
from tintray.jobs.queue.views import LOST, ClusterLine, JobLine, JobStatus

if TYPE_CHECKING:
    from tintray.jobs.queue.differences import JobDifference

_STYLES = {"succeeded": "green", "failed": "red", LOST: "red", "cancelled": "yellow"}
_SHOWN_TASKS = 12


def print_jobs(jobs: Sequence[JobLine], console: Console) -> None:
    """Jobs, one a line, the newest first; why each waits, or the reason of its state."""
    now = datetime.now(UTC)
    rows = [
        (
            job.id,
            Text(job.state, style=_STYLES.get(job.state, "")),
            _rounds(job),
            str(job.priority),
            _age(job.created, now),
            job.waits or job.reason,
        )
        for job in jobs
    ]
    columns = ("job", "state", "round", ">priority", ">age", "~reason")
    print_columns(columns, rows, console, ["priority", "round", "age", "reason"])


def print_status(job: JobStatus, console: Console) -> None:
    """One job in full."""
    console.print(title(job.id, job.state, _STYLES.get(job.state, "bold")))
    facts = {
        "reason": job.reason,
        "waits": job.waits or "",
        "stopping": job.stopping or "",
        "round": _rounds(job) if job.round else "",
        "loss": "" if job.loss is None else f"{job.loss:.4f}",
        "checkpoint": f"after round {job.checkpoint}" if job.checkpoint else "",
        "merge": job.merge or "",
        "worked on by": job.owner or "",
        "cluster": "" if job.cluster is None else f"{job.cluster}, attempt {job.attempt}",
        "went on": f"{job.restarts} of {job.max_restarts} times" if job.restarts else "",
        "key": job.key or "",
        "priority": str(job.priority),
        "store": job.store,
    }
    print_facts(facts, console)
    _print_tasks(job, console)
    console.print()
    events = ([moment(event.at), event.after, event.reason] for event in job.events)
    console.print(table_of(("at", "state", "~reason"), events))
    print_next(job.next, console)


def _print_tasks(job: JobStatus, console: Console) -> None:
    known = [task for task in job.tasks if task.agreement is not None]
    if not known:
        return
    heading = "task"
    if len(known) > _SHOWN_TASKS:
        heading = f"worst of {len(known)} tasks"
        known = sorted(known, key=lambda task: task.agreement or 0.0)[:_SHOWN_TASKS]
    rows = []
    for task in known:
        kept = "-" if task.selected_fraction is None else f"{task.selected_fraction:.0%}"
        held = "-" if task.held_back is None else f"{task.held_back:.3f}"
        rows.append([task.name, f"{task.agreement:.3f}", kept, held])
    console.print()
    console.print(table_of((heading, ">agreement", ">kept", ">held back"), rows))


def print_clusters(clusters: Sequence[ClusterLine], console: Console) -> None:
    """The queues, one cluster a line."""
    rows = ([c.address, str(c.running), str(c.max_jobs), str(c.waiting)] for c in clusters)
    console.print(table_of(("cluster", ">running", ">at once", ">waiting"), rows))


def print_difference(found: JobDifference, console: Console) -> None:
    """Two jobs beside each other."""
    if not found.fields and not found.results:
        console.print(f"{found.one} and {found.other} are the same")
        return
    fields, results = (
        [[line.field, line.one, line.other] for line in lines]
        for lines in (found.fields, found.results)
    )
    between: list[list[str]] = [[]] if fields and results else []
    rows = [*fields, *between, *results]
    console.print(table_of(("", f"~{found.one}", f"~{found.other}"), rows))


def _rounds(job: JobLine) -> str:
    return "" if job.round is None else f"{job.round}/{job.rounds}"


def _age(created: str, now: datetime) -> str:
    seconds = (now - datetime.fromisoformat(created)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def print_told(job: JobStatus, console: Console) -> None:
    """A job that was just changed: its id, how it stands, what to do next."""
    console.print(title(job.id, job.state, _STYLES.get(job.state, "")))
    print_facts({"reason": job.waits or job.reason}, console)
    print_next(job.next, console)
