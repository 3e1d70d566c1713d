"""Examples of a pool that nothing is learned from: what is learned is judged by them."""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.numerics.randomness import stream

SHARE, MOST, LEAST = 0.1, 256, 10
"""A fit keeps back this share of a pool, so many examples at most, and none rather than fewer."""


def held_back_count(total: int, wanted: int | None) -> int:
    """How many of a pool's ``total`` examples a fit keeps back, where the job names none or some.

    A tenth of fewer than a hundred examples would judge nothing, and the fit would miss them.
    """
    if wanted is not None:
        return wanted
    count = min(int(total * SHARE), MOST)
    return count if count >= LEAST else 0


def split_pool(
    total: int, count: int, seed: int, task: str, spared: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which examples of a pool are learned from, and which ``count`` are kept back: both in order.

    Pools may be sorted, so the choice is a shuffle, which depends on seed and task name alone; a
    smaller count chooses among what a larger one does. Rows that are ``spared`` are not kept back.
    """
    order = torch.randperm(total, generator=stream(seed, task, "held back"))
    if spared is not None:
        kept = torch.isin(order, spared)
        order = torch.cat([order[~kept], order[kept]])
        count = min(count, int((~kept).sum()))
    return order[count:].sort().values, order[:count].sort().values
