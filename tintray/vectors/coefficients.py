"""Merging coefficients Λ: their start, their bounds, and the optimiser that moves them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tintray.numerics.optimiser_state import optimiser_tensors, restore_optimiser
from tintray.numerics.snapshots import Snapshots


class Coefficients:
    """Λ [K, L] with its Adam state; the only thing that all tasks of a job decide together.

    Parameters
    ----------
    initial
        Λ to start from, [K, L].
    bounds
        Values are clamped into this interval after every update, as AdaMerging's released code
        does with (0, 1); ``None`` leaves them free.
    """

    def __init__(self, initial: Tensor, bounds: tuple[float, float] | None = None) -> None:
        self._parameter = nn.Parameter(initial.clone())
        self._optimiser = torch.optim.Adam([self._parameter], betas=(0.9, 0.999))
        self._bounds = bounds
        self.snapshots = Snapshots({"values": self._parameter})

    @property
    def values(self) -> Tensor:
        """Λ [K, L], detached; treat as read-only."""
        return self._parameter.detach()

    def update(self, gradient: Tensor, learning_rate: float) -> None:
        """Take one Adam step along ``gradient`` = ∂L/∂Λ [K, L]."""
        self._optimiser.param_groups[0]["lr"] = learning_rate
        self._parameter.grad = gradient
        self._optimiser.step()
        if self._bounds is not None:
            with torch.no_grad():
                self._parameter.clamp_(*self._bounds)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed job needs to go on as if nothing had happened."""
        moments = optimiser_tensors(self._optimiser)
        return {"values": self.values.clone()} | moments | self.snapshots.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what ``state_dict`` returned."""
        with torch.no_grad():
            self._parameter.copy_(state["values"])
        restore_optimiser(self._optimiser, state)
        self.snapshots.load_state_dict(state)
