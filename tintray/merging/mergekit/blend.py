"""What a *blend* is, a merging method as mergekit defines it: all inputs of a tensor to its merge.

Unlike the methods of ``declaration``, whose directions are scaled and searched, a blend takes
parameters of each tensor and input, works in the inputs' own type as mergekit does, and may take
the base as an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Scope = Literal["all", "input", "expert"]
"""Who has a value of a parameter: all inputs together, each input, each input but the base."""

REQUIRED: Any = object()

Shared = Mapping[str, Any]
"""The values of parameters that all inputs have together."""

Each = list[Mapping[str, Any]]
"""The values of parameters of each input; none for the base where the scope is "expert"."""


@dataclass(frozen=True)
class Setting:
    """A parameter of a blend, from ``low`` to ``high``; ``default`` may be ``REQUIRED``."""

    name: str
    kind: type[float] | type[int] | type[bool]
    scope: Scope = "all"
    default: Any = REQUIRED
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Inputs:
    """All inputs of one tensor, of one shape and one floating type, in the recipe's order.

    Attributes
    ----------
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


@dataclass(frozen=True)
class Blend:
    """A merging method of mergekit.

    Attributes
    ----------
    merge
        Inputs and the values of its parameters to the merged tensor; it changes none of them.
    base
        Whether a base is needed, may be given, or is an input like any other.
    least, most
        How many inputs it takes, the base included.
    workspace
        For how many inputs like its own it holds numbers while it runs, its result included: a
        constant, and for each input.
    piecewise
        Whether a number of the result depends on the inputs' numbers at its own place alone.
    check
        An expert's values to what was expected of them, where they do not go together.
    """

    name: str
    merge: Callable[[Inputs, Shared, Each], Tensor]
    settings: tuple[Setting, ...] = ()
    base: Literal["needed", "optional", "input"] = "needed"
    least: int = 1
    most: int | None = None
    workspace: tuple[int, int] = (4, 2)
    piecewise: bool = False
    check: Callable[[Mapping[str, Any]], str | None] | None = None

    def needed_bytes(self, numel: int, inputs: int, itemsize: int) -> int:
        """Bytes for a tensor, or a piece of one: its inputs and what the method holds."""
        fixed, each = self.workspace
        return numel * (inputs * itemsize + (fixed + each * inputs) * max(itemsize, 4))
