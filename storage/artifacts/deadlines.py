"""An end to every operation on a server, however slowly its bytes come.

The timeouts of a client begin anew with every byte, so a server that trickles could hold it for
ever. Here the work is done in a thread of its own, and whoever asked for it waits until its time is
over and no longer. The thread ends with the piece of content that it waits for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")


class OverdueError(Exception):
    """The operation has had its time."""


class Deadline:
    """When an operation must have ended, in seconds of ``clock``."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.on_end: Callable[[], object] | None = None  # for work that further threads do
        self._clock = clock
        self._end = clock() + seconds

    def extend(self, seconds: float) -> None:
        """Give the operation more time, for content whose size is known only now."""
        self._end += seconds

    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._end - self._clock())

    def check(self) -> None:
        """Raise ``OverdueError`` if no time is left."""
        if not self.left():
            raise OverdueError

    def end(self) -> None:
        """Leave no time, and tell further threads to stop."""
        self._end = -math.inf
        if self.on_end is not None:
            self.on_end()


_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def finish(work: Callable[[Deadline], Result], deadline: Deadline) -> Result:
    """What ``work`` gives, if it does within its time; else ``OverdueError``.

    Work that itself calls this shares the time of the outer one.
    """
    if (outer := _deadline.get()) is not None:
        return work(outer)
    future: Future[Result] = Future()

    def run() -> None:
        _deadline.set(deadline)
        try:
            future.set_result(work(deadline))
        except BaseException as error:  # noqa: BLE001 - raised below, to who asked for the work
            future.set_exception(error)

    threading.Thread(target=run, name="store", daemon=True).start()
    try:
        while not wait([future], deadline.left()).done:
            deadline.check()
    except BaseException:  # its time is over, or whoever waits was interrupted
        deadline.end()
        raise
    return future.result()


def refuse_overdue(**_: object) -> None:
    """Let no request of work begin whose time is over, be it the retry of one that failed."""
    if (deadline := _deadline.get()) is not None:
        deadline.check()


class Threads(ThreadPoolExecutor):
    """Threads that work by the deadline of whoever gave them something to do."""

    def submit(
        self, work: Callable[Given, Result], /, *args: Given.args, **options: Given.kwargs
    ) -> Future[Result]:
        """See ``Executor.submit``."""
        context = copy_context()
        return super().submit(lambda: context.run(work, *args, **options))
