"""What a blend is given: the inputs of one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """All inputs of one tensor, of one shape and one floating type.

    Attributes
    ----------
    name
        The tensor's name in the result.
    tensors
        One of each model, in the recipe's order; there is at least one.
    base
        Which of them is the base, or None.
    seed
        What random methods derive their streams from, together with names and places.
    """

    name: str
    tensors: tuple[Tensor, ...]
    base: int | None = None
    seed: int = 0

    @property
    def origin(self) -> Tensor:
        """The base's tensor."""
        assert self.base is not None, "the method was given no base"
        return self.tensors[self.base]

    @property
    def experts(self) -> list[int]:
        """Which inputs are not the base."""
        return [number for number in range(len(self.tensors)) if number != self.base]

    @property
    def others(self) -> list[Tensor]:
        """The tensors that are not the base's."""
        return [self.tensors[number] for number in self.experts]

    @property
    def shape(self) -> torch.Size:
        """The shape that all have."""
        return self.tensors[0].shape

    @property
    def dtype(self) -> torch.dtype:
        """The type that all have, and the result."""
        return self.tensors[0].dtype

    @property
    def precise(self) -> torch.dtype:
        """A type in which sums over many numbers are taken."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32
