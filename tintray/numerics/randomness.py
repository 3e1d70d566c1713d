"""Every random stream of a job, derived from (seed, task, what for): never from who runs it."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def stream(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator that depends on nothing but the job's seed and its purpose."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % (1 << 63))


def sample(seed: int, task: str, round_: int, examples: int, batch_size: int) -> Tensor:
    """The batch of ``round_`` where all rounds draw as many: int64 [batch_size]."""
    return drawn(seed, task, round_ * batch_size, batch_size, examples)


def drawn(seed: int, task: str, start: int, count: int, examples: int) -> Tensor:
    """Which of a pool's ``examples`` are drawn after the first ``start``: int64 [count].

    Draws walk through one shuffled epoch after another, so that every example is seen equally
    often; the shuffle depends on seed, task name and epoch alone.
    """
    parts, position = [], start
    while position < start + count:
        epoch, first = divmod(position, examples)
        last = min(examples, first + start + count - position)
        parts.append(_order(seed, task, epoch, examples)[first:last])
        position += last - first
    return torch.cat(parts)


@lru_cache(maxsize=128)  # rounds come back to it: drawing it anew costs them half a step's start
def _order(seed: int, task: str, epoch: int, examples: int) -> Tensor:
    """One shuffle of a pool, int64 [examples]; treat as read-only."""
    return torch.randperm(examples, generator=stream(seed, task, "epoch", epoch))


def sample_tasks(seed: int, round_: int, tasks: int, count: int) -> list[int]:
    """Which ``count`` of the tasks 0 … ``tasks`` - 1 take part in ``round_``, in order.

    Rounds walk through one shuffled order of all tasks after another; where it does not divide
    evenly, its last round is filled up from its own beginning. So no task is twice in a round, and
    every task is in one of any ``ceil(tasks / count)`` rounds that begin an order.
    """
    epoch, step = divmod(round_, -(-tasks // count))
    order = torch.randperm(tasks, generator=stream(seed, "tasks", epoch))
    positions = torch.arange(step * count, (step + 1) * count) % tasks
    return sorted(order[positions].tolist())
