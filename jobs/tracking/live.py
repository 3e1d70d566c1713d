"""A job's figures among Ray's metrics, for the Prometheus endpoint of each of Ray's nodes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tintray.jobs.events import Event, JobChecked, PhaseStarted, RoundDone
from tintray.tasks.evaluation import mean

JOB_TAGS = ("job_id", "name")
METRICS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tintray_job_running": ("1 while the job runs.", ()),
    "tintray_job_round": ("Rounds that are done.", ()),
    "tintray_job_rounds": ("Rounds that the fit will have.", ()),
    "tintray_job_loss": ("Loss of the last round, as a mean over its tasks.", ()),
    "tintray_job_agreement": ("Agreement with the experts in the last round, as a mean.", ()),
    "tintray_job_held_back": ("The same on what is held back, when it was measured last.", ()),
    "tintray_job_selected_fraction": ("Self-labels that the confidence filter selected.", ()),
    "tintray_job_passes_per_second": ("Batches through the model, each there and back.", ()),
    "tintray_job_phase_seconds": ("Seconds that the job has spent in a phase.", ("phase",)),
    "tintray_job_workers": ("Workers that the job has.", ()),
    "tintray_job_restarts": ("How often the job went on by itself after a failure.", ()),
    "tintray_job_task_agreement": ("Agreement of a task with its expert.", ("task",)),
}
"""Name -> what it says, and its tags besides the job's. Ray puts ``ray_`` before each name."""

SECONDS = 3.0
"""Seconds between two settings of all figures."""
MOST_TASKS = 32
"""Tasks of a job beyond which no figure of each is kept."""

Set = Callable[[str, float, Mapping[str, str]], None]


@dataclass
class LiveMetrics:
    """The figures of one job, kept as it tells of itself, and set by a thread while Ray runs here.

    Ray forgets a figure that was not set anew for some 15 seconds, and a round may take longer.
    ``set`` and ``clock`` are for tests.
    """

    job_id: str
    name: str
    restarts: int = 0
    set: Set = field(default_factory=lambda: _set)
    clock: Callable[[], float] = time.monotonic
    _phase: str = ""
    _since: float = 0.0
    _spent: dict[str, float] = field(default_factory=dict)
    _seconds: float = 0.0  # of the fit, when its last round was done
    _values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def take(self, event: Event) -> None:
        """Keep what an event tells."""
        if self._thread is None and "ray" in sys.modules:
            self._thread = threading.Thread(target=self._refresh, name="metrics", daemon=True)
            self._thread.start()
        match event:
            case PhaseStarted():
                self._end_phase()
                self._phase, self._seconds = event.phase, 0.0
                self.restarts += event.phase in self._spent and event.phase == "planning"
                self._tell(running=1, restarts=self.restarts)
            case JobChecked():
                self._tell(workers=event.workers)
            case RoundDone():
                self._take_round(event)

    def end(self) -> None:
        """The job is over: its figures are gone with it."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def push(self) -> None:
        """Set all figures."""
        for (name, tags), value in list(self._values.items()):
            self.set(name, value, dict(tags))

    def _refresh(self) -> None:
        while not self._over.wait(SECONDS):
            self.push()

    def _take_round(self, event: RoundDone) -> None:
        took, self._seconds = event.seconds - self._seconds, event.seconds
        self._tell(
            round=event.round,
            rounds=event.rounds,
            loss=event.loss,
            agreement=mean(list(event.agreement.values())),
            selected_fraction=mean(list(event.selected_fraction.values())),
            passes_per_second=len(event.agreement) / took if took > 0 else 0.0,
        )
        if event.held_back:
            self._tell(held_back=mean(list(event.held_back.values())))
        if len(event.agreement) <= MOST_TASKS:
            for task, share in event.agreement.items():
                self._tell({"task": task}, task_agreement=share)
        self._end_phase()

    def _end_phase(self) -> None:
        now, phase = self.clock(), self._phase
        if phase:
            self._spent[phase] = self._spent.get(phase, 0.0) + now - self._since
            self._tell({"phase": phase}, phase_seconds=self._spent[phase])
        self._since = now

    def _tell(self, tags: Mapping[str, str] | None = None, **values: float) -> None:
        for name, value in values.items():
            own = {"job_id": self.job_id, "name": self.name}
            labels = tuple((own | dict(tags or {})).items())
            self._values[f"tintray_job_{name}", labels] = float(value)


def _set(name: str, value: float, tags: Mapping[str, str]) -> None:
    """Set one of Ray's gauges; nothing where this process has not joined a Ray cluster."""
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        _gauge(name).set(value, tags=dict(tags))


@cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    about, tags = METRICS[name]
    return Gauge(name, about, (*JOB_TAGS, *tags))
