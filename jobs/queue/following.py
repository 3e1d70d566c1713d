"""Following a job from the catalog: the events that its driver told, as they are entered there.

Whoever follows a job that waits also hands over what may go next, so that a queue moves as long as
somebody cares about it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

from tintray.errors import ClusterError, TimedOutError, TintrayError
from tintray.jobs.display.times import moment
from tintray.jobs.events import Notice, OnEvent, PhaseStarted, Published, RoundDone, ignore
from tintray.jobs.queue.handover import LOG, dispatch, mark_exited, submission_id
from tintray.jobs.queue.ray_jobs import RayJobs
from tintray.jobs.queue.views import JobStatus, opened, resolve, status_of, waits_of
from tintray.storage.artifacts.blobs import get_blob
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.job_list import JobRow
from tintray.storage.catalog.states import JobState
from tintray.storage.secrets import redact

POLL = 0.5  # seconds between two looks into the catalog
_TEND_SECONDS = 2.0  # between two looks at the cluster of a job that waits


def logs(job: str, *, catalog: str | None = None, follow: bool = False) -> Iterator[str]:
    """What the driver of a job said, in pieces; with ``follow``, until the job is over.

    From its cluster, or as it was kept when the driver ended; of a job that was run without a
    cluster, the changes of its state.
    """
    with opened(catalog) as (known, url):
        job_id = resolve(known, job)
        shown = 0
        while True:
            row = known.queue.find(job_id)
            over = row.state.terminal or (row.lost and not _tend(known, url, row))
            text = _log(known, row)
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
            if over or not follow:
                return
            if not row.lost:
                _tend(known, url, row)
            time.sleep(2 * POLL)


def watch(
    job: str,
    *,
    catalog: str | None = None,
    timeout: float | None = None,
    on_event: OnEvent | None = None,
) -> JobStatus:
    """Follow a job until it is over or lost for good, telling ``on_event``; its status then.

    Raises ``TimedOutError``: it is neither after ``timeout`` seconds.
    """
    with opened(catalog) as (known, url):
        job_id = resolve(known, job)
        teller = _Teller(known, job_id, on_event or ignore)
        give_up = None if timeout is None else time.monotonic() + timeout
        tended = 0.0
        while True:
            row = known.queue.find(job_id)
            teller.tell(row)
            if row.state.terminal or (row.lost and not _tend(known, url, row)):
                return status_of(known, job_id)
            if give_up is not None and time.monotonic() > give_up:
                raise TimedOutError(
                    f"job {job_id} is still {row.state} after {timeout:g} s; "
                    f"`tintray watch {job_id}` follows it"
                )
            if not row.lost and time.monotonic() - tended > _TEND_SECONDS:
                _tend(known, url, row)
                tended = time.monotonic()
            time.sleep(POLL)


class _Teller:
    """Turns what is new in the catalog about a job into the events of its driver."""

    def __init__(self, catalog: Catalog, job_id: str, on_event: OnEvent) -> None:
        self._catalog = catalog
        self._job_id = job_id
        self._on_event = on_event
        self._events = 0
        self._round: int | None = None
        self._waits: str | None = None
        self._rounds = 0
        self._held_back: Mapping[str, float] = {}

    def tell(self, row: JobRow) -> None:
        if row.state is JobState.QUEUED:
            self._tell_waiting(row)
        for event in self._catalog.jobs.events(self._job_id, after=self._events):
            self._events = event.id
            before = event.from_state
            if before is not None and before.goes_back_to(event.to_state):
                self._on_event(Notice(event.reason))
            elif event.to_state is not JobState.QUEUED:
                self._tell_rounds()  # those of the fit that this state comes after
                self._tell(event.to_state, event.reason)
        self._tell_rounds()

    def _tell_waiting(self, row: JobRow) -> None:
        waits = waits_of(row, self._catalog.queue.position(row))
        if waits is not None and waits != self._waits:
            self._waits = waits
            self._on_event(PhaseStarted(str(JobState.QUEUED), waits))

    def _tell(self, state: JobState, reason: str) -> None:
        if state is JobState.FITTING:
            self._rounds = int(self._catalog.jobs.get(self._job_id).spec["fit"]["rounds"])
            self._round = None
        if state is JobState.SUCCEEDED:
            merge = self._catalog.merges.of_job(self._job_id)
            url = None if merge is None else self._catalog.merges.find(merge).url
            self._on_event(Published(url) if url else Notice(reason))
        elif state.terminal:
            self._on_event(Notice(f"{state}: {reason}"))
        else:
            self._on_event(PhaseStarted(str(state), reason))

    def _tell_rounds(self) -> None:
        if not self._rounds:
            return
        after = self._round
        if after is None:  # of what came before we looked, the last round is enough
            last = self._catalog.jobs.last_round(self._job_id)
            if last is None:
                return
            after = last.round - 1
        for row in self._catalog.jobs.rounds(self._job_id, after=after):
            self._round, found = row.round, row.metrics
            loss = found["loss"] if found["loss"] is not None else float("nan")
            shares = found["agreement"], found["kept"]
            before, self._held_back = self._held_back, found.get("held_back", {})
            watched = {} if self._held_back == before else self._held_back
            rest = found["seconds"], watched
            self._on_event(RoundDone(row.round, self._rounds, loss, *shares, *rest))


def _tend(catalog: Catalog, url: str, row: JobRow) -> bool:
    """Hand over what may go on the cluster of a job that waits or was lost.

    Whether it goes on: not if it was lost and its cluster is away, or its restarts are used up.
    """
    waits = row.state is JobState.QUEUED and row.owner is None
    if row.cluster is None or not (waits or row.lost):
        return not row.lost
    mark_exited(catalog, row)
    with suppress(ClusterError):
        dispatch(catalog, url, row.cluster)
    return not catalog.queue.find(row.id).lost


def _log(catalog: Catalog, row: JobRow) -> str:
    """The log of a job, from where it can be had: its cluster, its store, the catalog."""
    if row.cluster is not None and row.attempt:
        with suppress(ClusterError):
            text = RayJobs(row.cluster).logs(submission_id(row.id, row.attempt))
            if text is not None:
                return redact(text)
    for kept in catalog.artifacts.all(LOG, job_id=row.id)[-1:]:
        store = open_store(catalog.jobs.get(row.id).store_url)
        with suppress(TintrayError):
            return get_blob(store, kept.sha256).decode(errors="replace")
    return "".join(
        f"{moment(event.at)} {event.to_state}: {event.reason}\n"
        for event in catalog.jobs.events(row.id)
    )
