"""Jobs, their queues and their differences as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from tintray.jobs.cli.tables import open_table, print_facts, print_next
from tintray.jobs.queue.views import LOST, ClusterLine, JobLine, JobStatus

if TYPE_CHECKING:
    from tintray.jobs.queue.differences import JobDifference

_STYLES = {"succeeded": "green", "failed": "red", LOST: "red", "cancelled": "yellow"}
_SHOWN_TASKS = 12
_REASON = 60  # characters of a reason in a list


def print_jobs(jobs: Sequence[JobLine], console: Console) -> None:
    """Jobs, one a line, the newest first."""
    table = open_table("job", "state", "round", ">priority", ">age", "reason")
    now = datetime.now(UTC)
    for job in jobs:
        short = job.reason if len(job.reason) <= _REASON else job.reason[: _REASON - 1] + "…"
        table.add_row(
            job.id,
            Text(job.state, style=_STYLES.get(job.state, "")),
            _rounds(job),
            str(job.priority),
            _age(job.created, now),
            short,
        )
    console.print(table)


def print_status(job: JobStatus, console: Console) -> None:
    """One job in full."""
    console.print(
        Text.assemble((job.id, "bold"), "   ", (job.state, _STYLES.get(job.state, "bold")))
    )
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
        "key": job.key or "",
        "priority": str(job.priority),
        "store": job.store,
    }
    print_facts(facts, console)
    _print_tasks(job, console)
    console.print()
    table = open_table("at", "state", "~reason")
    for event in job.events:
        table.add_row(event.at[:19].replace("T", " "), event.after, event.reason)
    console.print(table)
    print_next(job.next, console)


def _print_tasks(job: JobStatus, console: Console) -> None:
    known = [task for task in job.tasks if task.agreement is not None]
    if not known:
        return
    worst = sorted(known, key=lambda task: task.agreement or 0.0)[:_SHOWN_TASKS]
    few = len(known) <= _SHOWN_TASKS
    table = open_table("task" if few else f"worst of {len(known)} tasks", ">agreement", ">kept")
    for task in known if few else worst:
        kept = "-" if task.selected_fraction is None else f"{task.selected_fraction:.0%}"
        table.add_row(task.name, f"{task.agreement:.3f}", kept)
    console.print()
    console.print(table)


def print_clusters(clusters: Sequence[ClusterLine], console: Console) -> None:
    """The queues, one cluster a line."""
    table = open_table("cluster", ">running", ">at once", ">waiting")
    for line in clusters:
        table.add_row(line.address, str(line.running), str(line.max_jobs), str(line.waiting))
    console.print(table)


def print_difference(found: JobDifference, console: Console) -> None:
    """Two jobs beside each other."""
    if not found.fields and not found.results:
        console.print(f"{found.one} and {found.other} are the same")
        return
    table = open_table("", f"~{found.one}", f"~{found.other}")
    for differences in (found.fields, found.results):
        if differences is found.results and found.fields and found.results:
            table.add_row()
        for line in differences:
            table.add_row(line.field, line.one, line.other)
    console.print(table)


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
    console.print(Text.assemble((job.id, "bold"), "   ", (job.state, _STYLES.get(job.state, ""))))
    print_facts({"reason": job.waits or job.reason}, console)
    print_next(job.next, console)
