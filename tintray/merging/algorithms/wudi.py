"""WUDI: the merged vector that disturbs each task least, found without data."""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.merging.declaration import Layer, Parameter, method, rows


@method(
    "wudi",
    summary="Per matrix, descend on the interference with every task vector, from their sum.",
    source="Cheng et al., WUDI-Merging, arXiv 2503.08099",
    parameters=[
        Parameter("steps", 300, 1, 10_000, "Adam steps", whole=True),
        Parameter("rate", 1e-5, 0, 1, "Adam's learning rate", open_low=True),
    ],
    workspace=3,
)
def wudi(layer: Layer, steps: int, rate: float) -> Tensor:
    """Minimise Σₖ ‖(τ − τₖ) τₖᵀ‖² / ‖τₖ‖² over τ, from Σ τₖ; what it moves is shared equally.

    The gradient is 2 (τ A − B) with A = Σ τₖᵀτₖ/‖τₖ‖² and B = Σ τₖ τₖᵀτₖ/‖τₖ‖², so a step costs
    one matrix product whatever the number of tasks.
    """
    if layer.base.ndim != 2:
        return layer.vectors / len(layer.vectors)
    norms = rows(layer.vectors).square().sum(1)
    curvature = layer.base.new_zeros(layer.base.shape[1], layer.base.shape[1])
    target = torch.zeros_like(layer.base)
    for vector, norm in zip(layer.vectors, norms.clamp_min(1e-38), strict=True):
        gram = vector.T @ vector / norm
        curvature += gram
        target += vector @ gram
    total = layer.vectors.sum(0)
    merged = _descend(total, curvature, target, steps, rate)
    return layer.vectors + (merged - total) / len(layer.vectors)


def _descend(start: Tensor, curvature: Tensor, target: Tensor, steps: int, rate: float) -> Tensor:
    value = start.clone().requires_grad_()
    adam = torch.optim.Adam([value], lr=rate)
    for _ in range(steps):
        value.grad = 2 * (value.detach() @ curvature - target)
        adam.step()
    return value.detach()
