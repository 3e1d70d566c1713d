"""Methods that keep a part of each task vector: TIES, DARE, Breadcrumbs, MagMax.

What is kept is judged within one tensor. Shares are shares of its coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.merging.algorithms.order_statistics import magnitude_at
from tintray.merging.declaration import Layer, Parameter, method, per_task, rows
from tintray.numerics.randomness import stream

_DENSITY = Parameter(
    "density", 0.2, 0, 1, "share of each task vector, the largest entries, that is kept",
    open_low=True,
)  # fmt: skip
_DROP = Parameter("drop", 0.9, 0, 1, "share of each task vector dropped at random", open_high=True)


def smallest_kept(layer: Layer, density: float) -> Tensor:
    """For each task the magnitude of the smallest of its ⌊density · n⌋ largest entries: [K, 1].

    At least one entry is kept.
    """
    bounds = []
    for row in rows(layer.vectors):
        dropped = len(row) - max(1, int(density * len(row)))
        bounds.append(magnitude_at(row, dropped) if dropped < len(row) else float("inf"))
    return torch.tensor(bounds, device=layer.vectors.device).unsqueeze(1)


def elect(vectors: Tensor) -> Tensor:
    """Disjoint directions: entries against the sign of the sum go, the rest are averaged.

    The sum over tasks is TIES's disjoint mean (eq. in section 3 of arXiv 2306.01708).
    """
    sign = vectors.sum(0).sign()
    agreeing = (vectors * sign).relu_()  # |τ| where it agrees, else 0
    count = agreeing.sign().sum(0)
    return agreeing.mul_(sign / count.clamp_min_(1))


@method(
    "ties",
    summary="Trim each task vector, elect a sign per coordinate, average what agrees with it.",
    source="Yadav et al., TIES-Merging, arXiv 2306.01708",
    parameters=[_DENSITY],
    thresholds=smallest_kept,
    elementwise=True,
    expert_at={"density": 1},
)
def ties(layer: Layer, density: float) -> Tensor:
    """D = the disjoint mean's terms; ``layer.thresholds`` says what trimming leaves."""
    return elect(_at_least(layer))


def _at_least(layer: Layer) -> Tensor:
    """τ where its magnitude reaches the threshold of its task, else 0."""
    assert layer.thresholds is not None
    # hardshrink keeps what is above its bound, in one pass over each task vector.
    bounds = layer.thresholds[:, 0].nextafter(torch.tensor(-1.0)).tolist()
    kept = torch.empty_like(layer.vectors)
    for row, out, bound in zip(layer.vectors, kept, bounds, strict=True):
        if bound < 0:  # a threshold of 0 keeps everything
            out.copy_(row)
        else:
            torch.hardshrink(row, bound, out=out)
    return kept


def drop_and_rescale(vectors: Tensor, kept: Tensor, drop: float) -> Tensor:
    """τ where ``kept`` [K, …] (0 or 1) is 1, divided by 1 − drop; eq. 1 of DARE."""
    return vectors * kept / (1 - drop)


def _kept(layer: Layer, drop: float) -> Tensor:
    """Which entries stay, 0 or 1: of each task by seed, tensor and task name alone.

    They are drawn in memory, so that they are the same wherever the method computes.
    """
    masks = [
        torch.rand(layer.base.shape, generator=stream(layer.seed, "dare", layer.name, task))
        for task in layer.tasks
    ]
    return (torch.stack(masks).to(layer.vectors.device) >= drop).float()


@method(
    "dare",
    summary="Drop entries of each task vector at random, rescale the rest, then task arithmetic.",
    source="Yu et al., DARE, arXiv 2311.03099",
    parameters=[_DROP],
    scale=0.3,
    adds_up=True,
    workspace=3,
    expert_at={"drop": 0},
)
def dare(layer: Layer, drop: float) -> Tensor:
    """D = m ⊙ τ / (1 − drop)."""
    return drop_and_rescale(layer.vectors, _kept(layer, drop), drop)


@method(
    "dare_ties",
    summary="Drop entries of each task vector at random, rescale the rest, then elect signs.",
    source="Yu et al., DARE, arXiv 2311.03099, with the election of TIES",
    parameters=[_DROP],
    workspace=4,
    expert_at={"drop": 0},
)
def dare_ties(layer: Layer, drop: float) -> Tensor:
    """D = the disjoint mean's terms of what DARE leaves."""
    return elect(drop_and_rescale(layer.vectors, _kept(layer, drop), drop))


def smallest_and_largest_kept(layer: Layer, smallest: float, largest: float) -> Tensor:
    """For each task the least and the greatest magnitude that stay: [K, 2]."""
    bounds = []
    for row in rows(layer.vectors):
        first = int(smallest * len(row))
        last = len(row) - 1 - int(largest * len(row))
        if first > last:
            bounds.append((float("inf"), 0.0))
        else:
            bounds.append((magnitude_at(row, first), magnitude_at(row, last)))
    return torch.tensor(bounds, device=layer.vectors.device)


@method(
    "breadcrumbs",
    summary="Mask the smallest and the largest entries of each task vector, then sum.",
    source="Davari and Belilovsky, Model Breadcrumbs, arXiv 2312.06795",
    parameters=[
        Parameter("smallest", 0.85, 0, 1, "share masked for being small", open_high=True),
        Parameter("largest", 0.007, 0, 1, "share masked for being large", open_high=True),
    ],
    scale=0.3,
    adds_up=True,
    thresholds=smallest_and_largest_kept,
    elementwise=True,
    expert_at={"smallest": 0, "largest": 0},
)
def breadcrumbs(layer: Layer, smallest: float, largest: float) -> Tensor:
    """D = τ between the two thresholds of its tensor."""
    assert layer.thresholds is not None
    low, high = (per_task(column, layer.vectors) for column in layer.thresholds.unbind(1))
    size = layer.vectors.abs()
    return torch.where((size >= low) & (size <= high), layer.vectors, 0.0)


@method(
    "magmax",
    summary="Per coordinate, the entry of largest magnitude.",
    source="Marczak et al., MagMax, arXiv 2407.06322",
    elementwise=True,
    scale=0.5,
)
def magmax(layer: Layer) -> Tensor:
    """D = τ where it is the largest of all tasks; tasks that draw share the coordinate."""
    size = layer.vectors.abs()
    wins = size == size.amax(0)
    return torch.where(wins, layer.vectors, 0.0) / wins.sum(0)
