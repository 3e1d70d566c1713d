"""The progress of a job while it runs: a live display on a terminal, plain lines elsewhere.

Both are fed by ``Tracker``, which knows nothing of either. Taking an event in costs microseconds:
the live display is drawn by a thread of its own a few times a second, whatever the rate of events.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from tintray.errors import printable
from tintray.jobs.display.times import duration
from tintray.jobs.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Notice,
    OnEvent,
    PhaseStarted,
    Published,
    RoundDone,
    TaskPrepared,
    TensorsMerged,
    TintLearned,
)
from tintray.limits import size_text

MAX_TASKS = 12  # beyond this many, a display shows the worst tasks instead of each
_SMOOTHING = 0.1  # a batch is small, so that a single round's agreement is mostly noise
_WINDOW = 50  # rounds over which the pace is measured
_MAX_SILENCE = 60.0  # seconds that a log may stand still


@dataclass
class Tracker:
    """Where a job stands, from the events seen so far."""

    clock: Callable[[], float] = time.monotonic
    phase: str = ""
    detail: str = ""
    phase_began: float = 0.0
    prepared: TaskPrepared | None = None
    round: RoundDone | None = None
    evaluated: int = 0
    loss: float = 0.0
    agreement: Mapping[str, float] = field(default_factory=dict)  # task -> smoothed share
    selected_fraction: float = 0.0  # mean over tasks, smoothed
    held_back: Mapping[str, float] = field(default_factory=dict)  # task -> agreement there
    _pace: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def take(self, event: Event) -> None:
        """Move on by one event."""
        match event:
            case PhaseStarted():
                self.phase, self.detail = event.phase, event.detail
                self.phase_began = self.clock()
            case TaskPrepared():
                self.prepared = event
            case RoundDone():
                self._take_round(event)
            case TensorsMerged():
                self.detail = f"{event.method}, {event.done / event.total:.0%} of the backbone"
            case TintLearned():
                self.detail = f"{event.done} of {event.total} tint layers learned"
            case Evaluated():
                self.evaluated += 1

    def _take_round(self, event: RoundDone) -> None:
        kept = _mean(event.selected_fraction.values())
        seen = self.round is not None
        self.loss = _blend(self.loss if seen else event.loss, event.loss)
        self.selected_fraction = _blend(self.selected_fraction if seen else kept, kept)
        # A new mapping each time: the thread that draws may be reading the one before.
        self.agreement = {
            **self.agreement,
            **{
                task: _blend(self.agreement.get(task, share), share)
                for task, share in event.agreement.items()
            },
        }
        self.held_back = event.held_back or self.held_back
        self._pace.append((event.round, event.seconds))
        self.round = event

    @property
    def mean_agreement(self) -> float:
        """Mean over tasks of the smoothed agreement."""
        return _mean(self.agreement.values())

    def on_held_back(self, after: str) -> str:
        """Mean agreement on what is held back, when measured last; nothing where it never was."""
        return f"held back {_mean(self.held_back.values()):.3f}{after}" if self.held_back else ""

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The ``count`` tasks that agree least with their expert, worst first."""
        return sorted(self.agreement.items(), key=lambda pair: pair[1])[:count]

    def seconds_left(self) -> float | None:
        """Wall time that the remaining rounds will take at the recent pace; None if unknown."""
        if self.round is None:
            return None
        (first, began), (last, now) = self._pace[0], self._pace[-1]
        left = self.round.rounds - self.round.round
        if last > first:
            return left * (now - began) / (last - first)
        # One round seen: its time since the fit began, unless earlier rounds were another run's
        return left * now if last == 1 else None

    def time_left(self, before: str) -> str:
        """The same for people, after ``before``; nothing where it is unknown or none."""
        left = self.seconds_left()
        return f"{before}{duration(left)} left" if left and left >= 1 else ""

    def phase_line(self) -> str:
        """How long the phase took."""
        return f"{self.phase} took {duration(self.clock() - self.phase_began)}"


@contextmanager
def watch(stream: TextIO | None = None) -> Iterator[OnEvent]:
    """Show the events of a job on ``stream`` (standard error) while the block runs.

    On a terminal the display is live, and goes away when the block ends well. ``NO_COLOR`` and
    ``TERM=dumb`` are respected.
    """
    from tintray.jobs.display.live import live
    from tintray.jobs.display.terminal import SafeConsole

    target = sys.stderr if stream is None else stream
    console = SafeConsole(file=target)
    if console.is_terminal and not console.is_dumb_terminal:
        with live(console) as on_event:
            yield on_event
    else:
        yield PlainProgress(target)


class PlainProgress:
    """Lines for a log: each phase, and of its tasks or rounds the first, every tenth and last.

    However long a tenth takes, a line a minute shows that the job is alive.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._tracker = Tracker(clock)
        self._tenths: dict[str, int] = {}
        self._told = clock()

    def __call__(self, event: Event) -> None:
        """Take the event in, and write a line if it is due."""
        if isinstance(event, PhaseStarted) and self._tracker.phase:
            self._write(f"  {self._tracker.phase_line()}")
        self._tracker.take(event)
        if line := self._line(event):
            self._write(line)

    def _line(self, event: Event) -> str | None:
        match event:
            case PhaseStarted():
                return event.phase + (f": {event.detail}" if event.detail else "")
            case TaskPrepared() if self._due("tasks", event.done, event.total):
                how = "found in the store" if event.cached else f"in {duration(event.seconds)}"
                return f"  {event.done}/{event.total} tasks: {event.task} {how}"
            case RoundDone() if self._due("rounds", event.round, event.rounds) or event.held_back:
                return self._round_line(event)
            case TensorsMerged() if self._silent():  # most merges take less
                return f"  {self._tracker.detail}"
            case TintLearned() if self._due("tints", event.done, event.total):
                agrees = "" if event.agreement is None else f", agreement {event.agreement:.3f}"
                took = f"tint learned in {duration(event.seconds)}"
                return f"  {event.done}/{event.total} tasks: {event.task}, {took}{agrees}"
            case CheckpointSaved():
                return f"  checkpoint after round {event.round} ({size_text(event.bytes)})"
            case Evaluated():
                figures = f"{event.value:.3f} (expert {event.expert:.3f})"
                return f"  {event.task}: {event.metric} {figures}"
            case Published():
                return f"published at {event.url}"
            case Notice():
                return f"note: {event.text}"
        return None

    def _round_line(self, event: RoundDone) -> str:
        tracker = self._tracker
        worst = "".join(f", worst {task} {share:.3f}" for task, share in tracker.worst(1))
        return (
            f"  round {event.round}/{event.rounds}: loss {tracker.loss:.3f}, "
            f"agreement {tracker.mean_agreement:.3f}{worst}, kept {tracker.selected_fraction:.0%}, "
            f"{tracker.on_held_back(', ') if event.held_back else ''}"
            f"{duration(event.seconds)}{tracker.time_left(', ')}"
        )

    def _silent(self) -> bool:
        return self._tracker.clock() - self._told >= _MAX_SILENCE

    def _due(self, what: str, done: int, total: int) -> bool:
        """Whether a line is due: for the first, each tenth and the last; each of a few tasks."""
        if what != "rounds" and total <= MAX_TASKS:
            return True
        tenth, told = 10 * done // max(total, 1), self._tenths.get(what, -1)
        self._tenths[what] = max(tenth, told)
        return tenth > told or done == total or self._silent()

    def _write(self, line: str) -> None:
        print(printable(line), file=self._stream, flush=True)
        self._told = self._tracker.clock()


def _blend(before: float, now: float) -> float:
    return before + _SMOOTHING * (now - before)


def _mean(values: Collection[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
