"""Jobs as the catalog knows them, put into words: lists, one job in full, what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from tintray.errors import InputError, SpecError, TintrayError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import default_catalog, default_store
from tintray.jobs.display.times import moment
from tintray.jobs.records import Record
from tintray.storage.catalog.drivers import Execute, ask
from tintray.storage.catalog.job_list import CLUSTERS, JobRow, select_jobs
from tintray.storage.catalog.states import ALIVE, OVER, JobState
from tintray.storage.catalog.waiting import QueuePosition, positions, waits

if TYPE_CHECKING:
    from tintray.storage.catalog.catalog import Catalog

_PATIENCE = 2.0  # seconds that a cluster has to answer whoever only looks
LOST = "lost"  # how a job is shown that nobody works on although it is not over
STATES = (*(str(state) for state in JobState), LOST)


@dataclass(frozen=True)
class JobLine(Record):
    """One line of ``tintray ps``."""

    id: str
    name: str
    state: str  # a JobState, or "lost"
    reason: str  # of its last transition
    created: str  # ISO 8601, UTC
    updated: str
    priority: int
    cluster: str | None  # None: it runs where it was started
    round: int | None = None
    rounds: int | None = None
    waits: str | None = None  # why it does not run yet

    @property
    def over(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self.state in (LOST, *OVER)


@dataclass(frozen=True)
class EventLine(Record):
    """One change of a job's state."""

    at: str
    before: str | None
    after: str
    reason: str


@dataclass(frozen=True)
class TaskLine(Record):
    """A task of a job, as of its last recorded round."""

    name: str
    kind: str
    agreement: float | None = None  # with its expert, on the batch of that round
    selected_fraction: float | None = None  # share of that batch that was not filtered out
    held_back: float | None = None  # agreement on examples held back, when measured last


@dataclass(frozen=True)
class ClusterLine(Record):
    """The queue of a cluster."""

    address: str
    running: int
    max_jobs: int
    waiting: int


@dataclass(frozen=True)
class JobStatus(JobLine):
    """All that the catalog knows of one job."""

    key: str | None = None
    attempt: int = 0  # how often it was handed over to its cluster
    restarts: int = 0  # how often it went on by itself
    max_restarts: int = 0  # how often it may
    owner: str | None = None  # who works on it
    stopping: str | None = None  # why it was asked to stop
    loss: float | None = None  # of its last recorded round
    checkpoint: int | None = None  # the round after which it would go on
    merge: str | None = None  # what it has published, "name/v1"
    store: str = ""
    tasks: Sequence[TaskLine] = ()
    events: Sequence[EventLine] = ()
    next: Mapping[str, str] = field(default_factory=dict)  # command -> what it does


@contextmanager
def opened(catalog: str | None) -> Iterator[tuple[Catalog, str]]:
    """A catalog, by default that of the settings, and its URL.

    Raises ``InputError``: it cannot be used, or there is none.
    """
    # Imported where it is needed: with SQLAlchemy it takes longer than what is asked of it.
    from tintray.storage.catalog.catalog import Catalog

    url = _url(catalog)
    with as_input_error():
        found = Catalog.open(url, create=False)
    with found:
        yield found, url


def _url(catalog: str | None) -> str:
    return default_catalog(default_store()) if catalog is None else catalog


def resolve(catalog: Catalog, text: str) -> str:
    """The id of the job that ``text`` means: an id, how one begins, a name, or ``latest``.

    Raises ``NotFoundError``, ``InputError``: there is none (with the nearest), or there are
    several.
    """
    if text == "latest":
        newest = catalog.queue.listing(1)
        if newest:
            return newest[0].id
    found = catalog.queue.by_prefix(text) if text else []  # all ids begin with nothing
    if text in found or not found:
        return catalog.queue.find(text).id
    if len(found) > 1:
        raise InputError(
            f"'{text}' may be any of {len(found)} jobs ({', '.join(found[:3])}, the newest first); "
            "give more of its id"
        )
    return found[0]


def list_jobs(
    *,
    catalog: str | None = None,
    limit: int | None = 20,
    states: Sequence[str] | None = None,
    name: str | None = None,
) -> list[JobLine]:
    """The ``limit`` newest jobs (None: all) and all that are not over, newest first.

    Jobs that a cluster has lost are handed to it again.

    ``states`` are JobState texts, or ``"lost"``.
    """
    wanted = None if states is None else _states(states)
    look = partial(_look, limit=limit, states=wanted, name=name)
    found = ask(_url(catalog), look)
    if found is None:
        with opened(catalog) as (known, _):
            found = known.queue.look(look)
    if any(row.lost and row.cluster for row in found[0]):
        with opened(catalog) as (known, url):
            _restart_lost(known, url, found[0])
            found = known.queue.look(look)
    rows, places = found
    lines = [replace(_line(row), waits=waits_of(row, places.get(row.id))) for row in rows]
    return lines if states is None else [line for line in lines if line.state in states]


def _restart_lost(catalog: Catalog, url: str, rows: Sequence[JobRow]) -> None:
    """Whoever looks notices that drivers are gone; a cluster that does not answer at once may be.

    Nor is it in the way that this user may only read.
    """
    from tintray.jobs.queue.handover import dispatch

    for cluster in {row.cluster for row in rows if row.lost and row.cluster is not None}:
        with suppress(TintrayError):
            dispatch(catalog, url, cluster, patience=_PATIENCE)


def _look(execute: Execute, **query: Any) -> tuple[list[JobRow], dict[str, QueuePosition]]:
    """Jobs, and where those of them stand that wait for a cluster."""
    rows = select_jobs(execute, **query)
    if not any(map(waits, rows)):
        return rows, {}
    limits = {str(row[0]): int(row[1]) for row in execute(CLUSTERS, ())}
    whole = query.get("states") is None and query.get("name") is None  # all that are not over too
    listed = rows if whole else select_jobs(execute, states=ALIVE)
    alive = [row for row in listed if not row.state.terminal]
    return rows, positions(alive, limits, datetime.now(UTC))


def status(job: str, *, catalog: str | None = None) -> JobStatus:
    """All that the catalog knows of a job; right also where its cluster is gone."""
    with opened(catalog) as (known, url):
        job_id = resolve(known, job)
        _restart_lost(known, url, [known.queue.find(job_id)])
        return status_of(known, job_id)


def list_clusters(*, catalog: str | None = None) -> list[ClusterLine]:
    """The clusters that jobs were submitted to, and how their queues stand."""
    with opened(catalog) as (known, _):
        found = known.queue.clusters().items()
    return [ClusterLine(a, queue.running, queue.max_jobs, queue.ahead) for a, queue in found]


def status_of(catalog: Catalog, job_id: str) -> JobStatus:
    """As :func:`status`, from an open catalog and an exact id."""
    from tintray.storage.catalog.jobs import most_restarts

    row = catalog.queue.find(job_id)
    checkpoints = catalog.checkpoints.of(job_id)
    last, job = catalog.jobs.last_round(job_id), catalog.jobs.get(job_id)
    metrics = {} if last is None else last.metrics
    shares = [metrics.get(name, {}) for name in ("agreement", "kept", "held_back")]
    found = JobStatus(
        **{**vars(_line(row)), "waits": waits_of(row, catalog.queue.position(row))},
        key=row.key,
        attempt=row.attempt,
        restarts=len(catalog.jobs.recoveries(job_id)),
        max_restarts=most_restarts(job),
        owner=row.owner,
        stopping=row.stop_reason if row.stop_at and not row.state.terminal else None,
        loss=metrics.get("loss"),
        checkpoint=checkpoints[0].round if checkpoints else None,
        merge=catalog.merges.of_job(job_id),
        store=job.store_url,
        tasks=[
            TaskLine(task.name, task.kind, *(of.get(task.name) for of in shares))
            for task in catalog.inputs.tasks(job_id)
        ],
        events=[
            EventLine(_text(event.at), event.from_state, event.to_state, event.reason)
            for event in catalog.jobs.events(job_id)
        ],
    )
    return replace(found, next=next_commands(found))


def next_commands(job: JobStatus) -> dict[str, str]:
    """What one may want to type next, with what it does."""
    where = f"goes on after round {job.checkpoint}" if job.checkpoint else "runs it again"
    if job.state == JobState.SUCCEEDED:
        return {f"tintray show {job.merge}": "what the merge kept, its size and its cost"}
    if job.state in (LOST, JobState.FAILED, JobState.CANCELLED):
        return {f"tintray resume {job.id}": where, f"tintray logs {job.id}": "what it said"}
    return {
        f"tintray watch {job.id}": "follow it",
        f"tintray cancel {job.id}": "stop it, and keep its checkpoint",
    }


def _states(names: Sequence[str]) -> list[JobState]:
    """The states in which jobs of these shown states can be."""
    unknown = [name for name in names if name not in STATES]
    if unknown:
        from tintray.errors import nearest

        raise SpecError(
            f"--state: expected one of {', '.join(STATES)}, found '{unknown[0]}'"
            f"{nearest(unknown[0], STATES)}"
        )
    if LOST in names:
        return [state for state in JobState if not state.terminal or str(state) in names]
    return [JobState(name) for name in names]


def _line(row: JobRow) -> JobLine:
    reason = row.reason
    if row.lost:
        reason = f"nobody works on it; it was {row.state}: `tintray resume {row.id}` goes on"
    return JobLine(
        id=row.id,
        name=row.name,
        state=LOST if row.lost else str(row.state),
        reason=reason,
        created=_text(row.created_at),
        updated=_text(row.updated_at),
        priority=row.priority,
        cluster=row.cluster,
        round=row.round,
        rounds=row.rounds,
    )


def waits_of(row: JobRow, position: QueuePosition | None) -> str | None:
    """Why a job does not run yet."""
    if position is None:
        begun = row.state is JobState.QUEUED and row.owner is not None
        return f"its driver has begun ({row.owner})" if begun else None
    if row.handed_at is not None and position.ahead == 0:
        return f"handed over at {moment(row.handed_at)}; its driver is starting"
    full = f"{row.cluster} runs {position.running} of {position.max_jobs} jobs at once"
    ahead = f"{position.ahead} go before it" if position.ahead else "it goes next"
    if position.running < position.max_jobs and not position.ahead:
        return f"{full}; it has not been handed over yet: `tintray watch {row.id}` does"
    return f"{full}; {ahead}"


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
