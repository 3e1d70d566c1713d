"""Methods on singular value decompositions: TSV-M, Iso-C, Iso-CTS.

They treat matrices; every other tensor gets the mean of the task vectors. Where a decomposition
was measured before (``svd``: of each task vector; ``svd_sum``: of their sum) it is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.merging.declaration import Layer, Parameter, method, shared_out


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin U [m, r], S [r], Vᵀ [r, n], or a batch of them."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def pack(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """One tensor [..., m + 1 + n, r] for a thin decomposition, as statistics are kept."""
    return torch.cat([left, values.unsqueeze(-2), right.transpose(-1, -2)], dim=-2).contiguous()


def unpack(packed: Tensor, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """What ``pack`` put together, for matrices of ``height`` m."""
    left, values, right = packed.tensor_split([height, height + 1], dim=-2)
    return left, values.squeeze(-2), right.transpose(-1, -2)


def orthogonalised(stack: Tensor) -> Tensor:
    """The matrix with orthonormal columns (or rows) nearest to ``stack``: its polar factor."""
    left, _, right = decompose(stack)
    return left @ right


def _mean(layer: Layer) -> Tensor:
    return layer.vectors / len(layer.vectors)


def _of_each(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    packed = layer.statistics.get("svd")
    return decompose(layer.vectors) if packed is None else unpack(packed, layer.base.shape[0])


def _of_sum(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    packed = layer.statistics.get("svd_sum")
    if packed is None:
        return decompose(layer.vectors.sum(0))
    return unpack(packed[0], layer.base.shape[0])


@method(
    "tsv_m",
    summary="Each task's leading singular vectors, made orthogonal to the other tasks'.",
    source="Gargiulo et al., Task Singular Vectors, arXiv 2412.00081, algorithm 1",
    workspace=5,
    uses=("svd",),
)
def tsv_m(layer: Layer) -> Tensor:
    """Dₖ = U⊥ₖ Sₖ V⊥ₖᵀ: 1/K of the rank for each task, stacks replaced by their polar factors."""
    if layer.base.ndim != 2:
        return _mean(layer)
    count = len(layer.vectors)
    left, values, right = _of_each(layer)
    rank = values.shape[-1] // count
    if rank == 0:  # fewer directions than tasks
        return _mean(layer)
    stacked_left = orthogonalised(torch.cat(list(left[:, :, :rank]), dim=1))
    stacked_right = orthogonalised(torch.cat(list(right[:, :rank]), dim=0))
    blocks = zip(
        stacked_left.tensor_split(count, dim=1),
        values[:, :rank],
        stacked_right.tensor_split(count, dim=0),
        strict=True,
    )
    return torch.stack([(u * s) @ v for u, s, v in blocks])


def _shares(vectors: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """How much each task has along each singular direction, |uᵢᵀ τₖ vᵢ|: [K, r]."""
    return torch.stack([((left.T @ vector) * right).sum(1).abs() for vector in vectors])


def _rebuilt(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """U diag(vₖ) Vᵀ for each row of values [K, r]: [K, m, n]."""
    return torch.stack([(left * row) @ right for row in values])


@method(
    "iso_c",
    summary="The sum of the task vectors with all its singular values at their mean.",
    source="Marczak et al., No Task Left Behind (Iso-C), arXiv 2502.04959",
    workspace=4,
    uses=("svd_sum",),
    expert_at=None,
)
def iso_c(layer: Layer) -> Tensor:
    """Σ D = σ̄ U Vᵀ; a singular direction is shared among the tasks by what each has along it."""
    if layer.base.ndim != 2:
        return _mean(layer)
    left, values, right = _of_sum(layer)
    flat = values.mean().expand_as(values)
    return _rebuilt(left, shared_out(flat, _shares(layer.vectors, left, right)), right)


@method(
    "iso_cts",
    summary="Iso-C in a common subspace, completed by each task's own directions.",
    source="Marczak et al., No Task Left Behind (Iso-CTS), arXiv 2502.04959",
    parameters=[Parameter("common", 0.8, 0, 1, "share of the rank that all tasks share")],
    workspace=5,
    uses=("svd_sum",),
    expert_at=None,
)
def iso_cts(layer: Layer, common: float) -> Tensor:
    """Σ D = σ̄ U⊥ V⊥ᵀ over the common directions and s = (r − r_common)/K of each task's own."""
    if layer.base.ndim != 2:
        return _mean(layer)
    count, rank = len(layer.vectors), min(layer.base.shape)
    own = round((rank - int(rank * common)) / count)
    own = min(own, rank // count)
    shared = rank - own * count
    left, values, right = _of_sum(layer)
    lefts, sizes, rights = [left[:, :shared]], [values[:shared]], [right[:shared]]
    beside = layer.vectors - left[:, :shared] @ (left[:, :shared].T @ layer.vectors)
    for vector in beside:
        u, s, v = decompose(vector)
        lefts.append(u[:, :own])
        sizes.append(s[:own])
        rights.append(v[:own])
    mean = torch.cat(sizes).mean()
    u, v = orthogonalised(torch.cat(lefts, dim=1)), orthogonalised(torch.cat(rights, dim=0))
    shares = layer.vectors.new_zeros(count, rank)
    shares[:, :shared] = _shares(layer.vectors, u[:, :shared], v[:shared])
    for task in range(count):  # behind the common directions, each task owns a stretch
        shares[task, shared + task * own : shared + (task + 1) * own] = 1
    return _rebuilt(u, shared_out(mean.expand(rank), shares), v)
