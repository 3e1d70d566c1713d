"""A matrix of low rank as a product: what a LoRA adapter adds to a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """A task vector of one tensor as a product, τ = up · down: what a LoRA adapter adds to it.

    ``up`` is [m, r] and ``down`` [r, n / m], for a tensor of n numbers whose first dimension is m;
    the adapter's scaling is in ``up``.
    """

    up: Tensor
    down: Tensor

    def dense(self) -> Tensor:
        """The same numbers, written out: [n]."""
        return (self.up.float() @ self.down.float()).flatten()


def balanced(left: Tensor, values: Tensor, right: Tensor, rank: int) -> LowRank:
    """The best product of at most ``rank`` for a matrix, from its singular value decomposition.

    The singular values are shared out evenly between both factors.
    """
    half = values[:rank].sqrt()
    return LowRank(left[:, :rank] * half, half[:, None] * right[:rank])
