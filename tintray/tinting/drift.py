"""What a tint layer learned, told by numbers: how far it went, and along which directions.

Each tensor that a task owns, or adds a product to, is held against its expert's and against the one
that all tasks share, where there is one: a head has none, and of a block that every task owns whole
it is the base's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tintray.models.attention import HeadSplit

DIRECTIONS = 5
"""Singular directions that are told of a matrix, the largest of its expert's first."""
_WHOLE = 2**20  # numbers of a matrix that is decomposed exactly


@dataclass(frozen=True)
class Known:
    """One tensor as the task has it and as others have it; None where others have none."""

    tinted: Tensor
    expert: Tensor
    base: Tensor | None
    backbone: Tensor | None  # merged; None where no such tensor is shared

    @property
    def shared(self) -> Tensor | None:
        """What is there without the task: the merged backbone's, or else the base's."""
        return self.base if self.backbone is None else self.backbone

    @property
    def held_against(self) -> str | None:
        """What ``shared`` is: ``"backbone"`` or ``"base"``."""
        if self.backbone is not None:
            return "backbone"
        return None if self.base is None else "base"


@dataclass(frozen=True)
class Direction:
    """One singular direction of the expert's step, and how much of it others take.

    Of τ = expert − base = Σ σᵢ uᵢ vᵢᵀ the share uᵢᵀ (W − base) vᵢ / σᵢ: 1 is as far as the expert
    went along it, 0 not at all, below 0 the other way. Where there is no base, the base is 0.
    """

    energy: float  # σᵢ² as a share of ‖τ‖²
    tinted: float
    backbone: float | None


def distance(one: Tensor, other: Tensor | None) -> float | None:
    """‖one − other‖ / ‖other‖; None where there is no other, or it is 0."""
    if other is None or not (size := float(other.double().norm())):
        return None
    return float((one.double() - other.double()).norm()) / size


def by_head(pairs: Sequence[tuple[HeadSplit, Tensor, Tensor]]) -> list[float]:
    """How far each head is from another model's: ‖one − other‖ / ‖other‖ over its numbers.

    ``pairs`` are the tensors of one attention: how each is cut, its own and the other one.
    """
    moved = [split.squares(one - other) for split, one, other in pairs]
    whole = [split.squares(other) for split, _, other in pairs]
    sums = [[sum(column) for column in zip(*of, strict=True)] for of in (moved, whole)]
    return [math.sqrt(d / n) if n else 0.0 for d, n in zip(*sums, strict=True)]


def directions(known: Known, count: int = DIRECTIONS) -> list[Direction]:
    """The largest singular directions of the expert's step; none of what is no matrix."""
    if known.expert.ndim < 2:
        return []
    origin = torch.zeros_like(known.expert) if known.base is None else known.base
    step = _matrix(known.expert - origin)
    whole = float(step.square().sum())
    if not whole:
        return []
    left, values, right = _decomposed(step, count)
    found = []
    for n in range(min(count, int((values > 1e-6 * values[0]).sum()))):
        shares = [
            None
            if tensor is None
            else float(left[:, n] @ _matrix(tensor - origin) @ right[n] / values[n])
            for tensor in (known.tinted, known.backbone)
        ]
        assert shares[0] is not None
        found.append(Direction(float(values[n] ** 2) / whole, shares[0], shares[1]))
    return found


def _matrix(tensor: Tensor) -> Tensor:
    """Rows and columns in float64: [out, in · k · k] of a convolution, [S, d] of a table."""
    return tensor.double().flatten(0, -2) if tensor.ndim == 3 else tensor.double().flatten(1)


def _decomposed(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    if matrix.numel() <= _WHOLE:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, count + 8, niter=8)
    return left, values, right.T


def parting(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """How far two steps Δ, Δ' of the same tensors are from each other: 0 alike, 1 unrelated.

    ‖Δ − Δ'‖ / √(‖Δ‖² + ‖Δ'‖²), over all tensors; √2 where they are opposite. 0 if both are 0.
    """
    apart = sum(float((one[n].double() - other[n].double()).square().sum()) for n in one)
    sizes = sum(float(of[n].double().square().sum()) for of in (one, other) for n in one)
    return math.sqrt(apart / sizes) if sizes else 0.0
