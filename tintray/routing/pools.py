"""What tells a pool's examples from those of other tasks, ready to be kept."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tintray.numerics.randomness import stream
from tintray.pools.feeding import batches_on
from tintray.pools.pool import Pool
from tintray.routing.features import features, form_of
from tintray.routing.statistics import DIRECTIONS, EXAMPLES, LEAST, MOST, TaskStatistics


def routing_key(pool: Pool, device: str = "cpu") -> str:
    """The hash of what a pool's statistics come of, and of where, if not in memory."""
    form = form_of(pool.batch(slice(0, 1)))
    where = "" if device == "cpu" else f" {device}"
    kept = f"{pool.digest} {form} {DIRECTIONS} {EXAMPLES}{where}"
    return hashlib.sha256(kept.encode()).hexdigest()


def routing_of(pool: Pool, device: str = "cpu") -> dict[str, Tensor] | None:
    """A pool's statistics as tensors to keep; None if it has too few examples, or none of a form.

    They are computed on ``device``, and are in memory.
    Pools come in any order, by class for instance: examples are drawn by chance, always the same.
    """
    form = form_of(pool.batch(slice(0, 1)))
    if form is None or len(pool) < LEAST:
        return None
    chosen = torch.randperm(len(pool), generator=stream(0, "routing"))[:MOST]
    found = TaskStatistics.of(pool_features(pool[chosen], device)).tensors(form)
    return {name: tensor.cpu() for name, tensor in found.items()}


@torch.inference_mode()
def pool_features(pool: Pool, device: str = "cpu") -> Tensor:
    """Features [N, D] of a pool's examples, in their order, on ``device``."""
    return torch.cat([features(batch) for batch in batches_on(pool, device)])
