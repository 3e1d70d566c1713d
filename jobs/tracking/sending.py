"""Telling a tracker from a thread of its own: whether it answers changes nothing for the job."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue

from tintray.errors import shortened
from tintray.jobs.tracking.tracker import Tracker
from tintray.jobs.tracking.values import Value

Call = Callable[[Tracker], None]
Message = Call | list[Value]

_MOST_WAITING = 500_000  # values that are kept for a tracker that does not answer
_MOST_AT_ONCE = 5_000
_TRIES = 3  # of what fails once the job is over
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds


class _Caught(AbstractContextManager["_Caught"]):
    """Keeps what its block raised, whatever a library takes for an error."""

    error: Exception | None = None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None


class Sender(threading.Thread):
    """Tells a tracker, in order; what fails is tried again, less and less often."""

    def __init__(self, connect: Callable[[], Tracker]) -> None:
        super().__init__(name="tracking", daemon=True)
        self.failure: str | None = None
        """What went wrong first, in one line."""
        self._connect = connect
        self._tracker: Tracker | None = None
        self._inbox: SimpleQueue[Message | None] = SimpleQueue()
        self._waiting: deque[Message] = deque()
        self._put = self._told = self._failures = 0  # values, values, times the first one failed
        self._closing = threading.Event()
        self._over = False

    def put(self, message: Message) -> None:
        """Have something told; returns at once."""
        if isinstance(message, list):
            if self._put - self._told > _MOST_WAITING:
                return
            self._put += len(message)
        self._inbox.put(message)

    def close(self, patience: float) -> bool:
        """Whether all was told, within so many seconds."""
        self._closing.set()
        self._inbox.put(None)
        self.join(patience)
        return not self.is_alive() and not self._waiting

    def run(self) -> None:
        """Tell until all is told and nothing more comes."""
        pause = 0.0
        while self._receive(pause):
            with _Caught() as caught:
                self._send()
            if caught.error is None:
                pause = 0.0
                continue
            self.failure = self.failure or _said(caught.error)
            self._failures += 1
            if self._closing.is_set() and (self._tracker is None or self._failures >= _TRIES):
                return
            pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)

    def _receive(self, pause: float) -> bool:
        """Wait for something to tell, after a failure for so long; whether there is anything."""
        if pause and self._closing.wait(pause):
            time.sleep(_FIRST_PAUSE)
        while not self._over:
            try:
                message = self._inbox.get(block=not self._waiting)
            except Empty:
                break
            last = self._waiting[-1] if self._waiting else None
            if message is None:
                self._over = True
            elif isinstance(message, list) and isinstance(last, list) and len(last) < _MOST_AT_ONCE:
                last += message
            else:
                self._waiting.append(message)
        return bool(self._waiting)

    def _send(self) -> None:
        if self._tracker is None:
            self._tracker = self._connect()
        while self._waiting:
            message = self._waiting[0]
            if isinstance(message, list):
                self._tracker.log(message)
                self._told += len(message)
            else:
                message(self._tracker)
            self._waiting.popleft()
            self._failures = 0


def _said(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__)
