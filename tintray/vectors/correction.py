"""δ: what all tasks add to the merged backbone together, learned beside the coefficients.

θ = θ₀ + Σₖ λₖ τₖ + δ. Coefficients can only scale what the experts know; where their task vectors
conflict, no Λ serves all of them. δ [P] is free: it moves along Σₜ ∂Lₜ/∂θ, which every round has
anyway, so that it costs no pass through the model, only its Adam state. The merge stays one
backbone of the same size. Fits of few rounds leave it small; it starts at zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_NAMES = ("values", "first", "second")


class Correction:
    """δ [P], or a stretch of it, with Adam's two moments; all start at zero.

    Every operation is elementwise, so that stretches move as the whole would.
    """

    def __init__(self, numel: int, device: str = "cpu") -> None:
        self._tensors = {name: torch.zeros(numel, device=device) for name in _NAMES}
        self._steps = 0

    @property
    def values(self) -> Tensor:
        """δ; treat as read-only."""
        return self._tensors["values"]

    def update(self, gradient: Tensor, learning_rate: float) -> None:
        """Take one Adam step (Kingma and Ba, arXiv 1412.6980) along ∂L/∂θ."""
        values, first, second = (self._tensors[name] for name in _NAMES)
        self._steps += 1
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        bias_first, bias_second = (1 - beta**self._steps for beta in BETAS)
        size = (second / bias_second).sqrt_().add_(_EPSILON)
        values.addcdiv_(first, size, value=-learning_rate / bias_first)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed job needs; ``steps`` is one number, the others are [P]."""
        return {n: t.clone() for n, t in self._tensors.items()} | {
            "steps": torch.tensor([float(self._steps)])
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what ``state_dict`` returned."""
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])
        self._steps = int(state["steps"].item())
