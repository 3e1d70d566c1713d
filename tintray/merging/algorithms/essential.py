"""ESM: each task's part of a weight that moves what a layer answers most, made orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.merging.declaration import Layer, method, per_task

POWER = 2
"""How strongly what is larger than the mean counts more: a task, a column."""
FLATTEN = 0.15
"""What is left of the differences between the directions' eigenvalues."""


def orthonormal(stack: Tensor) -> tuple[Tensor, Tensor]:
    """The polar factor of a matrix over the directions that it has, and its mean singular value.

    Directions that it has not, as where tasks are equal or learned nothing, stay zero.
    """
    left, values, right = torch.linalg.svd(stack, full_matrices=False)
    has = values > 1e-9 * values.max().clamp_min(1e-38)
    return (left * has) @ right, values.mean()


@method(
    "esm",
    summary="The directions that move each layer's answers most, made orthogonal across tasks.",
    source="Essential Subspace Merging, CVPR 2026, github.com/kiddo127/ESM at fc82fe7",
    needs=("gram",),
    workspace=6,
    expert_at=None,
)
def esm(layer: Layer) -> Tensor:
    """Σ D = 2 s̄ᵤ s̄ᵥ U⊥ V⊥ for stacks of Pₖ and Pₖᵀ τₖ, Pₖ the main directions of τₖ x.

    Each task has 1/K of a layer's outputs. Pₖ are the leading eigenvectors of τₖ Gₖ τₖᵀ, for the
    Gram matrix Gₖ of its expert's inputs. A row of either stack is scaled by its eigenvalue's root
    of degree 1/0.15, a task by (‖τₖ‖/mean)², a column of the second by (norm/mean)². The mean
    stands wherever no inputs were measured.
    """
    grams = layer.statistics.get("gram")
    count = len(layer.vectors)
    if grams is None or layer.base.ndim != 2 or layer.base.shape[0] < count:
        return layer.vectors / count
    rank = layer.base.shape[0] // count
    # In float64, which GPUs for graphics do at 1/32 to 1/64 of their speed.
    vectors, tiny = layer.vectors.double(), 1e-38
    values, turned = torch.linalg.eigh(vectors @ grams.double() @ vectors.mT)
    values = values[:, -rank:].flip(1).clamp_min(0)  # eigh lists the largest last
    basis = turned[:, :, -rank:].flip(2)
    flat = (values / values.mean(1, keepdim=True).clamp_min(tiny)) ** FLATTEN
    flat = (flat / flat.mean(1, keepdim=True).clamp_min(tiny))[:, :, None]
    norms = vectors.flatten(1).norm(dim=1)
    weights = (norms / norms.mean().clamp_min(tiny)) ** POWER
    rows = flat * (basis.mT @ vectors) * per_task(weights, vectors)
    columns = rows.flatten(0, 1).norm(dim=0)
    rows = rows * (columns / columns.mean().clamp_min(tiny)) ** POWER
    left, left_mean = orthonormal(torch.cat(list(basis * flat.mT), dim=1))
    right, right_mean = orthonormal(rows.flatten(0, 1))
    parts = zip(left.tensor_split(count, dim=1), right.tensor_split(count), strict=True)
    return torch.stack([2 * left_mean * right_mean * (u @ v) for u, v in parts]).float()
