"""What becomes of a job when something fails while it runs: it goes on by itself where it can.

A job that lost members starts them again, and its fit goes on from its last checkpoint; a store or
a database that is away is waited for. The merge is the same whatever happened on the way: nothing
that is computed depends on where or when.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from tintray.errors import (
    AwayError,
    CancelledError,
    InputError,
    IntegrityError,
    LeaseHeldError,
    LeaseLostError,
    LostError,
    NoMemoryError,
    PreemptedError,
    RefusedError,
    TintrayError,
)
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.resources import is_out_of_memory

Answer = TypeVar("Answer")

Cause = Literal[
    "lost", "preempted", "memory", "away", "damaged", "refused", "stopped", "input", "bug"
]
"""A worker, a node or an object; a node that was taken away; no memory left; a store or a database;
bytes that are not those that were written; a request to a store that took others; asked to; what
was given; anything else."""

AWAY_SECONDS = 900.0
"""How long a job waits for a store or a database, all its waits together until it gets further."""

Place = tuple[int, int]
"""How far a job got for good: the number of its phase, and the round of its last checkpoint."""

_PAUSE, _LONGEST_PAUSE = 0.5, 15.0  # seconds between two looks: at first, and in the end
_LONGEST_WAIT = 120.0
_REPEATS = 2  # of what is damaged or refused, after the first

_log = logging.getLogger(__name__)


def cause_of(error: BaseException) -> Cause:
    """Why a job failed, as far as it matters to what can be done."""
    match error:
        case CancelledError() | KeyboardInterrupt() | LeaseLostError() | LeaseHeldError():
            return "stopped"
        case PreemptedError():
            return "preempted"
        case LostError():
            return "lost"
        case NoMemoryError():
            return "memory"
        case AwayError():
            return "away"
        case IntegrityError():
            return "damaged"
        case RefusedError():
            return "refused"
        case InputError():
            return "input"
    return "memory" if is_out_of_memory(error) else "bug"


@dataclass(frozen=True)
class Remedy:
    """What is done about a failure: ``reason`` is one sentence."""

    cause: Cause
    reason: str


@dataclass
class Recovery:
    """What a job may still do about failures.

    Attributes
    ----------
    restarts
        How often it may go on by itself.
    used
        How often it has, by earlier drivers too.
    away
        Seconds that it may still wait for a store or a database.
    place
        The furthest that it was when something failed.
    """

    restarts: int
    used: int = 0
    away: float = AWAY_SECONDS
    halved: bool = False
    repeats: int = 0
    waits: int = 0
    """How often it had to wait: what fails again and again is left alone for longer each time."""
    place: Place = (0, 0)

    def reached(self, place: Place) -> None:
        """A job that is further than at any failure before begins to wait and to ask anew.

        What is counted against all of it, however far it gets, are ``restarts``.
        """
        if place > self.place:
            self.place, self.away, self.repeats, self.waits = place, AWAY_SECONDS, 0, 0

    def remedy(self, error: BaseException) -> Remedy | None:
        """What to do now; None if the job is to end with this error."""
        cause, said = cause_of(error), _said(error)
        if cause in ("stopped", "input", "bug") or self.used >= self.restarts:
            return None
        if cause == "memory":
            if self.halved:
                return None
            self.halved = True
            what = "starts over with half the examples at once (fit.micro_batch)"
        elif cause == "away":
            if self.away <= 0:
                return None
            what = "goes on once that can be used"
            self.waits += 1
        elif cause in ("damaged", "refused"):  # on the way, or for good? asking anew can tell
            if self.repeats == _REPEATS:
                return None
            self.repeats += 1
            what = "reads it again" if cause == "damaged" else "asks again"
        else:
            what = "goes on with new workers"
        self.used += 1
        return Remedy(cause, f"{said}: the job {what} ({self.used} of {self.restarts})")

    def wait(self, ask: Callable[[], Answer], check: Callable[[], None] = lambda: None) -> Answer:
        """What ``ask`` answers once it raises no AwayError; raises it where the time is used up.

        ``check`` is asked before each look; whatever it raises ends the wait.
        """
        if self.waits > 1:
            time.sleep(rest := min(2.0**self.waits / 4, _LONGEST_WAIT))
            self.away -= rest
        pause, began = _PAUSE, time.monotonic()
        while True:
            check()
            try:
                return ask()
            except AwayError as error:
                if self.away <= 0:
                    raise
                if pause == _PAUSE:
                    _log.warning("waits, for %.0f s at most: %s", self.away, error)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            now = time.monotonic()
            self.away, began = self.away - (now - began), now


def on_what_is_left(spec: JobSpec, cause: Cause) -> JobSpec:
    """The job with as many workers as its cluster has room for, once some were lost."""
    if cause in ("lost", "preempted") and spec.cluster.address is not None:
        return spec.changed(cluster={"workers": "auto"})
    return spec


def _said(error: BaseException) -> str:
    """An error without what it tells a person to do."""
    text = str(error) if isinstance(error, TintrayError) else f"{type(error).__name__}: {error}"
    return text.partition("; ")[0]
