"""One job while it runs: its row in the catalog, its lease, its phase, and how it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tintray.errors import (
    CancelledError,
    LeaseLostError,
    StateConflictError,
    StorageError,
    TintrayError,
    printable,
    shortened,
)
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.events import (
    CheckpointSaved,
    Evaluated,
    Notice,
    OnEvent,
    PhaseStarted,
    RoundDone,
)
from tintray.jobs.runs.heartbeat import Heartbeat
from tintray.jobs.runs.recovery import Place
from tintray.jobs.runs.stopping import KEYBOARD, Moment, Stopper
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState
from tintray.tasks.evaluation import TaskScore

_FLUSH_SECONDS = 2.0  # what is entered in the catalog is gathered, off the rounds' own path
_PHASES = list(JobState)
_MOMENTS: dict[JobState, Moment] = {JobState.FITTING: "round", JobState.PUBLISHING: "never"}

_log = logging.getLogger(__name__)


def enter_job(catalog: Catalog, spec: JobSpec) -> str:
    """Enter a job that this process is about to run; returns its id."""
    return catalog.jobs.create(
        spec.name, spec.record(), str(spec.store), digest=spec.submission_hash()
    )


def evaluated(score: TaskScore) -> Evaluated:
    """A measurement as an event."""
    return Evaluated(score.task, score.metric, score.merged, score.expert)


class JobRun:
    """One job while it runs; ``with run:`` holds its lease and stops it on request.

    One that was ``queued`` and hears SIGTERM without a request in the catalog is left to be started
    again: its machine is taken away.

    Raises LeaseHeldError if another process works on the job.
    """

    def __init__(
        self, job_id: str, catalog: Catalog, on_event: OnEvent, *, queued: bool = False
    ) -> None:
        self.job_id = job_id
        self.catalog = catalog
        self.on_event = on_event
        self.stopper = Stopper()
        self.lease = Heartbeat(catalog, job_id, on_stop=self.stopper.request)
        self.state = JobState.QUEUED
        self.furthest: Place = (0, 0)
        self._queued = queued
        self.recovered = [event.reason for event in catalog.jobs.recoveries(job_id)]
        """How the job went on by itself before, under drivers that are gone."""
        self.seconds: dict[str, float] = {}
        self.remarks: list[str] = list(self.recovered)
        """What whoever uses the result should know of it; part of what is published."""
        self._rounds: dict[int, dict[str, Any]] = {}
        self._held_back: dict[str, float] = {}  # agreement there, when it was measured last
        self._artifacts: list[KnownArtifact] = []
        self._flushed = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the lease in this block; whatever ends it early is the job's last event."""
        with self.lease, self.stopper, self._ending():
            yield

    @contextmanager
    def phase(self, state: JobState, reason: str) -> Iterator[None]:
        """Be in a phase: told to the catalog and to whoever watches, and timed."""
        with self.stopper.at(_MOMENTS.get(state, "now")):
            self.move(state, reason)
            self.on_event(PhaseStarted(state.value, reason))
            started = time.perf_counter()
            yield
            self.flush()
            spent = self.seconds.get(state.value, 0.0)  # before the job was resumed
            self.seconds[state.value] = spent + time.perf_counter() - started

    def move(self, state: JobState, reason: str) -> None:
        """Change the job's state in the catalog, from the state that this run put it in."""
        self.catalog.jobs.transition(self.job_id, self.state, state, reason, token=self.lease.token)
        self.state = state
        self.furthest = max(self.furthest, (_PHASES.index(state), 0))
        if state.terminal:
            self.stopper.settle()

    def again(self, reason: str) -> None:
        """Begin again after a failure: told to the catalog, to whoever watches, and in the result.

        Rounds that were not entered yet are: they are computed again, to the same figures.
        """
        self.flush()
        # The catalog may have heard of the last phase although its answer was lost.
        self.state = JobState(self.catalog.jobs.get(self.job_id).state)
        if self.state is JobState.SUCCEEDED:
            return
        if self.state.terminal:
            raise StateConflictError(f"job {self.job_id} is {self.state}: it cannot begin again")
        self.move(JobState.QUEUED, reason)
        self.remark(reason)

    def remark(self, text: str) -> None:
        """Say something that belongs to the result: now, and in what is published."""
        text = shortened(printable(text))
        if text not in self.remarks:
            self.remarks.append(text)
            self.on_event(Notice(text))

    def used(self, *artifacts: KnownArtifact) -> None:
        """Note what the job needs from now on."""
        self._artifacts += artifacts
        self._flush_if_due()

    def round_done(self, event: RoundDone) -> None:
        """Tell of a round, and keep its metrics for the catalog."""
        self.lease.check()
        self.on_event(event)
        self._held_back = dict(event.held_back) or self._held_back
        self._rounds[event.round] = {
            "loss": event.loss,
            "agreement": dict(event.agreement),
            "kept": dict(event.selected_fraction),
            "seconds": event.seconds,
            "held_back": self._held_back,
        }
        self._flush_if_due()

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        """Tell of a checkpoint: what comes before it is not computed again."""
        self.furthest = max(self.furthest, (_PHASES.index(self.state), event.round))
        self.on_event(event)

    def measured(self, score: TaskScore) -> None:
        """Tell of a task's measurement."""
        self.on_event(evaluated(score))

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Enter what was gathered in the catalog."""
        if self._artifacts:
            self.catalog.artifacts.record(self._artifacts, job_id=self.job_id)
        if self._rounds:
            self.catalog.jobs.record_rounds(self.job_id, self._rounds, token=self.lease.token)
        self._artifacts, self._rounds = [], {}
        self._flushed = time.monotonic()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            try:
                yield
            except (LeaseLostError, CancelledError):
                raise
            except (Exception, SystemExit):
                self.stopper.check()  # a stop that a library took for a failure of its own
                raise
        except LeaseLostError:  # the job is another owner's, who says how it ends
            raise
        except CancelledError as error:
            if not self._preempted():
                self._end(JobState.CANCELLED, str(error))
            raise
        except KeyboardInterrupt as error:
            self._end(JobState.CANCELLED, str(error) or KEYBOARD)
            raise
        except BaseException as error:
            internal = f"internal error: {type(error).__name__}: {error}"
            self._end(JobState.FAILED, str(error) if isinstance(error, TintrayError) else internal)
            raise

    def _preempted(self) -> bool:
        if not self._queued:
            return False
        try:
            self.flush()
            return self.catalog.queue.stop_requested(self.job_id) is None
        except StorageError:  # whoever starts it again hears of a request
            return True

    def _end(self, state: JobState, reason: str) -> None:
        if self.state.terminal:  # what failed after it was published changes nothing of that
            _log.warning("job %s has %s; then: %s", self.job_id, self.state, reason)
            return
        self.stopper.settle()  # the signal that belongs to a stop may come later than the stop
        try:
            self.flush()
            self.move(state, reason)
        except StorageError as error:  # what ended the job is what its user must hear of
            _log.warning(
                "job %s: its end (%s) is not in the catalog: %s", self.job_id, state, error
            )
