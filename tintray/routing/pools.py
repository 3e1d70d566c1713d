"""What tells a pool's examples from those of other tasks, ready to be kept."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tintray.numerics.randomness import stream
from tintray.pools.pool import BATCH, Pool
from tintray.routing.features import features, form_of
from tintray.routing.statistics import DIRECTIONS, EXAMPLES, LEAST, MOST, TaskStatistics


def routing_key(pool: Pool) -> str:
    """The hash of what a pool's statistics come of."""
    form = form_of(pool.batch(slice(0, 1)))
    kept = f"{pool.digest} {form} {DIRECTIONS} {EXAMPLES}"
    return hashlib.sha256(kept.encode()).hexdigest()


def routing_of(pool: Pool) -> dict[str, Tensor] | None:
    """A pool's statistics as tensors to keep; None if it has too few examples, or none of a form.

    Pools come in any order, by class for instance: examples are drawn by chance, always the same.
    """
    form = form_of(pool.batch(slice(0, 1)))
    if form is None or len(pool) < LEAST:
        return None
    chosen = torch.randperm(len(pool), generator=stream(0, "routing"))[:MOST]
    return TaskStatistics.of(pool_features(pool[chosen])).tensors(form)


@torch.inference_mode()
def pool_features(pool: Pool) -> Tensor:
    """Features [N, D] of a pool's examples, in their order."""
    starts = range(0, len(pool), BATCH)
    return torch.cat([features(pool.batch(slice(n, n + BATCH))) for n in starts])
