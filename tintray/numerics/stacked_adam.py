"""Adam for the parameters of many tasks at once: one row each, and one step for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BETAS, EPSILON = (0.9, 0.999), 1e-8
PREFIX = "optimiser."
_NAMES = ("exp_avg", "exp_avg_sq")  # as torch calls the moments


class StackedAdam:
    """Parameters [K, …], a row per task, moved along their gradients (Kingma and Ba, 1412.6980).

    A row that does not move keeps its moments and its count of steps, as an optimiser of its own
    would. ``rates`` are the highest learning rates, one for each parameter.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rates: Sequence[float]) -> None:
        self.parameters, self._rates = parameters, rates
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.moments = [[torch.zeros_like(p.data) for p in parameters] for _ in _NAMES]
        first = parameters[0]
        # doubles: 1 - 0.999 in float32 would be off by 1e-4 of itself
        self.steps = torch.zeros(len(first), dtype=torch.float64, device=first.device)

    def zero_gradients(self) -> None:
        """Forget the gradients; they stay where they are."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def update(self, moving: Tensor, pace: Tensor) -> None:
        """One step of the rows that move, bool [K], at a share [] of their highest rates."""
        self.steps += moving
        biases = [(1 - beta**self.steps).float() for beta in BETAS]
        for rate, values, first, second in zip(
            self._rates, self.parameters, *self.moments, strict=True
        ):
            gradient = values.grad
            assert gradient is not None, "the constructor has made it"
            every = (-1, *[1] * (values.ndim - 1))
            new_first = first.lerp(gradient, 1 - BETAS[0])
            new_second = (second * BETAS[1]).addcmul(gradient, gradient, value=1 - BETAS[1])
            size = (new_second / biases[1].view(every)).sqrt().add_(EPSILON)
            moved = values - rate * pace * (new_first / biases[0].view(every)) / size
            rows = moving.view(every)
            for old, new in ((values, moved), (first, new_first), (second, new_second)):
                old.copy_(torch.where(rows, new, old))


@dataclass(frozen=True)
class AdamRow:
    """What a stacked Adam remembers of one task, under the names that torch's own has.

    ``lengths`` are those of the task's parameters, along their first dimension.
    """

    adam: StackedAdam
    row: int
    lengths: Sequence[int]

    def state_tensors(self) -> dict[str, Tensor]:
        """Copies; empty before the first step."""
        steps = self.adam.steps[self.row].float()
        if not steps:
            return {}
        found = {}
        for number in range(len(self.lengths)):
            found[f"{PREFIX}{number}.step"] = steps.clone()
            found |= {key: moment.clone() for key, moment in self._moments(number).items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what ``state_tensors`` returned."""
        self.adam.steps[self.row] = 0.0
        for number in range(len(self.lengths)):
            if (steps := tensors.get(f"{PREFIX}{number}.step")) is not None:
                self.adam.steps[self.row] = steps.item()
            for key, moment in self._moments(number).items():
                moment.copy_(tensors[key]) if key in tensors else moment.zero_()

    def _moments(self, number: int) -> dict[str, Tensor]:
        rows = slice(self.lengths[number])
        return {
            f"{PREFIX}{number}.{name}": moments[number][self.row, rows]
            for name, moments in zip(_NAMES, self.adam.moments, strict=True)
        }
