"""Where jobs stand in the queues of their clusters, told from their rows alone."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tintray.storage.catalog.job_list import JobRow
from tintray.storage.catalog.states import JobState

HANDOVER = 120.0  # seconds within which a job that was handed over must show a sign of life
MAX_JOBS = 1  # jobs that a cluster runs at once where nobody has said otherwise


@dataclass(frozen=True)
class QueuePosition:
    """Where a job stands in the queue of its cluster, or the next one that comes would."""

    running: int
    max_jobs: int
    ahead: int  # jobs that go before it


def waits(job: JobRow) -> bool:
    """Whether a job is in a queue: its driver has not begun."""
    return job.state is JobState.QUEUED and job.cluster is not None and job.owner is None


def positions(
    alive: Iterable[JobRow], limits: Mapping[str, int], now: datetime
) -> dict[str, QueuePosition]:
    """By id, for each job that waits. ``alive`` are all jobs that are not over."""
    running: dict[str, int] = defaultdict(int)
    idle: dict[str, list[JobRow]] = defaultdict(list)
    known = [job for job in alive if job.cluster is not None]
    for job in known:
        since = job.handed_at if job.state is JobState.QUEUED else None
        fresh = since is not None and since > now - timedelta(seconds=HANDOVER)
        if job.owner is not None or fresh:
            running[job.cluster or ""] += 1
        elif job.state is JobState.QUEUED:
            idle[job.cluster or ""].append(job)
    orders = {cluster: sorted(map(_turn, jobs)) for cluster, jobs in idle.items()}
    return {
        job.id: QueuePosition(
            running[cluster],
            limits.get(cluster, MAX_JOBS),
            bisect_left(orders.get(cluster, []), _turn(job)),
        )
        for job in known
        if (cluster := job.cluster) is not None and waits(job)
    }


def _turn(job: JobRow) -> tuple[int, datetime]:
    """What decides who goes first: the least."""
    return -job.priority, job.created_at
