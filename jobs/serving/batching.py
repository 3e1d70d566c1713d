"""Requests that wait a moment for each other and go to a replica as one batch of mixed tasks.

No more waits than is allowed: whoever comes then is told to come again. While all replicas are
busy, requests gather; so batches grow with the load. While some are, an example waits for others no
longer than ``batch_wait_ms``; at rest it does not wait at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tintray.errors import BusyError, TimedOutError, TintrayError
from tintray.jobs.serving.options import ServeOptions
from tintray.jobs.serving.replica import Example
from tintray.jobs.serving.replicas import Replicas
from tintray.serving.answers import Answer

Answers = list[Answer | TintrayError]


@dataclass(frozen=True, eq=False)
class _Waiting:
    examples: Sequence[Example]
    answers: asyncio.Future[Answers]


class Batcher:
    """Hands requests to the replicas of a version, in batches; of one event loop."""

    def __init__(self, replicas: Replicas, options: ServeOptions) -> None:
        self._replicas, self._options = replicas, options
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        each = options.passes_at_once + 1  # one is prepared while others are computed
        self._free = asyncio.Semaphore(each * max(1, options.replicas))
        self._sent: set[asyncio.Task[None]] = set()
        self._loop = asyncio.create_task(self._run())
        self.queued, self.batches, self.examples = 0, 0, 0

    async def predict(self, examples: Sequence[Example]) -> Answers:
        """Answers to a request.

        Raises BusyError: too much waits already; TimedOutError: it took too long; ClusterError.
        """
        if self.queued and self.queued + len(examples) > self._options.max_queued:
            raise BusyError(f"{self.queued:,} examples wait already; ask again a little later")
        answers = asyncio.get_running_loop().create_future()
        waiting = _Waiting(examples, answers)
        self._waiting.append(waiting)
        self.queued += len(examples)
        self._arrived.set()
        try:
            return await asyncio.wait_for(answers, self._options.timeout)
        except TimeoutError as error:
            if waiting in self._waiting:  # its place is for others
                self._waiting.remove(waiting)
                self.queued -= len(examples)
            seconds = self._options.timeout
            raise TimedOutError(
                f"there was no answer within {seconds:g} s; ask again a little later"
            ) from error

    async def close(self) -> None:
        """Wait for what was sent, and stop."""
        self._loop.cancel()
        await asyncio.gather(*self._sent, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._free.acquire()
            batch = await self._gather()
            task = asyncio.create_task(self._send(batch))
            self._sent.add(task)
            task.add_done_callback(self._over)

    def _over(self, sent: asyncio.Task[None]) -> None:
        """Whoever waits for others while something is out looks again whether anything is."""
        self._sent.discard(sent)
        self._arrived.set()

    async def _gather(self) -> list[_Waiting]:
        """The next batch: whole requests, as many as fit."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        size = self._options.max_batch_size
        loop = asyncio.get_running_loop()
        until = loop.time() + self._options.batch_wait_ms / 1000
        while self._sent and self.queued < size and (left := until - loop.time()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        if not self._waiting:  # who waited has gone
            return []
        batch = [self._waiting.popleft()]
        taken = len(batch[0].examples)
        while self._waiting and taken + len(self._waiting[0].examples) <= size:
            batch.append(self._waiting.popleft())
            taken += len(batch[-1].examples)
        self.queued -= taken
        return [one for one in batch if not one.answers.done()]  # of others nobody waits any more

    async def _send(self, batch: list[_Waiting]) -> None:
        examples = [example for one in batch for example in one.examples]
        try:
            if not examples:
                return
            self.batches, self.examples = self.batches + 1, self.examples + len(examples)
            found = await self._replicas.predict(examples)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            for one in batch:
                if not one.answers.done():
                    one.answers.set_exception(error)
            return
        finally:
            self._free.release()
        start = 0
        for one in batch:
            if not one.answers.done():
                one.answers.set_result(found[start : start + len(one.examples)])
            start += len(one.examples)
