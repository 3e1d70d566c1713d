"""Batches where a model computes: the next ones are made ready while it is busy with these.

In memory a batch is what ``Pool.batch`` gives. For a GPU a thread cuts the next batches, pins them
and copies them on a stream of its own; images cross as bytes and become floats there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from tintray.pools.pool import BATCH, Pool

AHEAD = 2
"""Batches that are made ready, and passes that may wait for a GPU, before the present one."""

MOST, MOST_NUMBERS, MOST_TOKENS = 1024, 256 * 3 * 224 * 224, 2**14
"""Examples of one pass on a GPU at most, the numbers of their images, and their tokens: enough to
fill it, few enough for the activations of a large model."""


def examples_at_once(pool: Pool, device: str = "cpu") -> int:
    """Examples of one forward pass there: a core's cache is small, a GPU wants more."""
    if device == "cpu":
        return BATCH
    tokens = pool.inputs.get("input_ids")
    if tokens is not None:
        return max(1, min(MOST, MOST_TOKENS // tokens.shape[1]))
    numbers = max(tensor[0].numel() for tensor in pool.inputs.values())
    return max(1, min(MOST, MOST_NUMBERS // numbers))


def batches_on(
    pool: Pool, device: str = "cpu", examples: int | None = None, *, ahead: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Model inputs of all examples in order, ``examples`` at a time, on ``device``.

    ``ahead`` batches are made ready beforehand: by default ``AHEAD`` on a GPU, and none in memory.
    """
    size = examples or examples_at_once(pool, device)
    parts = [slice(n, min(n + size, len(pool))) for n in range(0, len(pool), size)]
    ahead = (0 if device == "cpu" else AHEAD) if ahead is None else ahead
    if not ahead:
        for part in parts:
            yield _ready(*_prepared(pool, part, device, None))
        return
    cuda: Any = torch.cuda  # whose streams have no types
    stream = cuda.Stream(device) if device.startswith("cuda") else None
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, "batches") as thread:
        for part in parts:
            waiting.append(thread.submit(_prepared, pool, part, device, stream))
            if len(waiting) > ahead:
                yield _ready(*waiting.popleft().result())
        while waiting:
            yield _ready(*waiting.popleft().result())


def _prepared(
    pool: Pool, part: slice, device: str, stream: Any
) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """A batch on the device, and what says when it is there."""
    batch = pool.stored(part)
    if stream is None:
        return pool.as_floats({n: t.to(device) for n, t in batch.items()}), None
    with torch.cuda.stream(stream):
        pinned = {name: tensor.pin_memory() for name, tensor in batch.items()}
        there = {name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()}
        return pool.as_floats(there), stream.record_event()


def _ready(batch: dict[str, Tensor], there: torch.cuda.Event | None) -> dict[str, Tensor]:
    """The batch, for the present stream: it waits, not the process."""
    if there is not None:
        stream = torch.cuda.current_stream()
        stream.wait_event(there)
        for tensor in batch.values():
            tensor.record_stream(stream)
    return batch


class Pace:
    """Lets passes be started before those before them are over, but not more than ``AHEAD``."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._running: deque[torch.cuda.Event] = deque()

    def started(self, most: int = AHEAD) -> None:
        """One more pass was; wait until ``most`` of them are left."""
        if self._on_gpu:
            self._running.append(torch.cuda.current_stream().record_event())
            while len(self._running) > most:
                self._running.popleft().synchronize()

    def over(self) -> None:
        """Wait for all of them: what was copied to memory without waiting is there."""
        self.started(0)
