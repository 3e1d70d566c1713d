"""The matrix T of task vectors: merge a backbone from it, project a gradient onto it.

Row k is τₖ = θₖ − θ₀ over the shared tensors (Ilharco et al., arXiv 2212.04089). With Λ:

* merge:    θˡ = θ₀ˡ + Σₖ λₖˡ τₖˡ          (AdaMerging, arXiv 2310.02575, layer-wise form)
* project:  ∂L/∂λₖˡ = ⟨τₖˡ, ∂L/∂θˡ⟩         (the chain rule of the line above)

Both read T once, K·P multiply-adds each, whatever the number of tasks that contributed gradients:
that is what makes a round cost little more than the forward and backward passes it contains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tintray.layout import Layout


@dataclass(frozen=True)
class TaskVectors:
    """Base θ₀ [P] and task vectors T [K, P] in one layout; rows in the order of ``tasks``."""

    layout: Layout
    tasks: tuple[str, ...]
    base: Tensor
    matrix: Tensor

    def merge(self, coefficients: Tensor, out: Tensor | None = None) -> Tensor:
        """θ [P] = θ₀ + Λ·T for Λ [K, L]; written into ``out`` where given."""
        theta = torch.empty_like(self.base) if out is None else out
        for column, unit in enumerate(self.layout.units):
            stretch = slice(unit.start, unit.stop)
            torch.addmv(
                self.base[stretch],
                self.matrix[:, stretch].t(),
                coefficients[:, column],
                out=theta[stretch],
            )
        return theta

    def project(self, gradient: Tensor) -> Tensor:
        """∂L/∂Λ [K, L] from ∂L/∂θ [P]."""
        columns = [
            self.matrix[:, unit.start : unit.stop] @ gradient[unit.start : unit.stop]
            for unit in self.layout.units
        ]
        return torch.stack(columns, dim=1)
