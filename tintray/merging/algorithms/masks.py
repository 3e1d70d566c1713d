"""Methods that keep masks: Consensus and TALL masks, EMR."""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.merging.declaration import Layer, Parameter, method, per_task, rows

_LAMBDA = Parameter("sparsity", 0.4, 0, 10, "λ of the mask |τₖ| ≥ λ |Σ τ − τₖ|; larger keeps less")


def tall_masks_of(vectors: Tensor, sparsity: float) -> Tensor:
    """mₖ = |τₖ| ≥ λ |τ_MTL − τₖ|, true where coordinate and task belong together [K, …]."""
    return vectors.abs() >= sparsity * (vectors.sum(0) - vectors).abs()


@method(
    "consensus",
    summary="Task arithmetic over the coordinates that several tasks use.",
    source="Wang et al., TALL masks and Consensus merging, arXiv 2405.07813",
    parameters=[
        _LAMBDA,
        Parameter("least", 2, 1, 1000, "tasks that must use a coordinate", whole=True),
    ],
    scale=0.3,
    adds_up=True,
    elementwise=True,
)
def consensus(layer: Layer, sparsity: float, least: int) -> Tensor:
    """D = τ where at least ``least`` masks are true (all of them, with fewer tasks)."""
    users = tall_masks_of(layer.vectors, sparsity).sum(0)
    return layer.vectors * (users >= min(least, len(layer.vectors)))


def _localised(layer: Layer, sparsity: float) -> Tensor:
    return tall_masks_of(layer.vectors, sparsity) * layer.vectors.sum(0)


@method(
    "tall_masks",
    summary="Each task reads its own coordinates of the sum of all task vectors.",
    source="Wang et al., TALL masks and Consensus merging, arXiv 2405.07813",
    parameters=[_LAMBDA],
    tuned=False,
    own=_localised,
    elementwise=True,
)
def tall_masks(layer: Layer, sparsity: float) -> Tensor:
    """D = τ; task k itself runs on θ₀ + mₖ ⊙ Σ τ."""
    return layer.vectors


def elected(vectors: Tensor) -> Tensor:
    """EMR's unified task vector […]: per coordinate the sign of the sum, and the largest entry."""
    sign = vectors.sum(0).sign()
    return sign * (vectors * sign).amax(0).clamp_min(0)


def masses(layer: Layer) -> Tensor:
    """For each task Σ|τₖ| and Σ|Mₖ ⊙ τ_uni|, whose ratio is its rescaler: [K, 2]."""
    unified = elected(layer.vectors)
    selected = torch.where(layer.vectors * unified > 0, unified.abs(), 0.0)
    pair = [rows(part).sum(1, dtype=torch.float64) for part in (layer.vectors.abs(), selected)]
    return torch.stack(pair, dim=1)


def _modulated(layer: Layer) -> Tensor:
    assert layer.totals is not None
    whole, selected = layer.totals.unbind(1)
    rescale = torch.where(selected > 0, whole / selected.clamp_min(1e-38), 0.0).float()
    unified = elected(layer.vectors)
    own = torch.where(layer.vectors * unified > 0, unified, 0.0)
    return own * per_task(rescale, own)


@method(
    "emr",
    summary="Elect one task vector; each task masks and rescales it.",
    source="Huang et al., EMR-Merging, arXiv 2405.17461",
    tuned=False,
    own=_modulated,
    totals=masses,
    elementwise=True,
)
def emr(layer: Layer) -> Tensor:
    """D = the entries that were elected, each under its task; task k runs on its modulation."""
    unified = elected(layer.vectors)
    wins = (layer.vectors == unified) & (unified != 0)
    return torch.where(wins, layer.vectors, 0.0) / wins.sum(0).clamp_min(1)
