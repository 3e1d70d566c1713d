"""Stopping a job while it runs, by a signal or by a request in the catalog.

During the rounds of a fit a stop waits for the end of the round, so that a checkpoint can be
written; a round that takes too long is broken off, and the last checkpoint is what is left. In
other phases it takes effect at once; while a merge is being published, no more.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

from tintray.errors import CancelledError

GRACE = 10.0
"""Seconds that a round may still take once a stop was asked for."""

Moment = Literal["now", "round", "never"]
KEYBOARD = "interrupted from the keyboard"


class Stopper:
    """Hears that the job is to stop, and says so in the job's main thread when the time has come.

    ``with stopper:`` listens for SIGTERM and SIGINT, where that can be done.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._moment: Moment = "now"
        self._settled = False
        self._grace: threading.Timer | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:  # as a shell does in the background
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._grace is not None:
            self._grace.cancel()
        while self._before:
            signal.signal(*self._before.popitem())

    @property
    def asked(self) -> bool:
        """Whether the job is to stop."""
        return self._reason is not None and self._moment != "never" and not self._settled

    def settle(self) -> None:
        """From now on nothing stops the job: it is over."""
        self._settled = True

    def request(self, reason: str) -> None:
        """Ask the job to stop; from any thread, and as often as one likes."""
        if self._reason is None:
            self._ask(reason)
            self._wake()

    def _ask(self, reason: str) -> None:
        self._reason = reason
        if self._before:
            self._grace = threading.Timer(GRACE, self._lose_patience)
            self._grace.daemon = True
            self._grace.start()

    def check(self) -> None:
        """Stop here if the job is to stop.

        Raises CancelledError, KeyboardInterrupt as the job was asked to stop; never while it is
        being published.
        """
        if not self.asked:
            return
        if self._reason == KEYBOARD:
            raise KeyboardInterrupt
        raise CancelledError(self._reason)

    @contextmanager
    def at(self, moment: Moment) -> Iterator[None]:
        """When a stop takes effect in this block; one that came before does so at its start."""
        self.check()
        before, self._moment = self._moment, moment
        try:
            yield
        finally:
            self._moment = before

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """In the main thread: a signal from outside, or our own that wakes it up."""
        first = self._reason is None
        if first:
            self._ask(KEYBOARD if number == signal.SIGINT else "stopped by SIGTERM")
        impatient = number == signal.SIGINT and not first  # Ctrl-C for the second time
        if self._moment == "now" or impatient:
            self.check()

    def _wake(self) -> None:
        """Interrupt what the main thread waits for: its handler is then run there."""
        main = threading.main_thread().ident
        if signal.SIGTERM in self._before and main is not None:
            signal.pthread_kill(main, signal.SIGTERM)

    def _lose_patience(self) -> None:
        if self._moment == "round":
            self._moment = "now"
            self._wake()
