"""The matrix T of task vectors: merge a backbone from it, project a gradient onto it.

Row k is τₖ = θₖ − θ₀ over the shared tensors (Ilharco et al., arXiv 2212.04089). With Λ:

* merge:    θˡ = θ₀ˡ + Σₖ λₖˡ τₖˡ          (AdaMerging, arXiv 2310.02575, layer-wise form)
* project:  ∂L/∂λₖˡ = ⟨τₖˡ, ∂L/∂θˡ⟩         (the chain rule of the line above)

Both read T once, K·P multiply-adds each, whatever the number of tasks that contributed gradients:
that is what makes a round cost little more than the forward and backward passes it contains.
T is kept tensor by tensor, in any of the formats of ``stacks``.

A task vector by itself is a mapping from names to tensors or products (``LowRank``); names that are
missing have not changed. ``pack`` writes one as named tensors for a file, ``row_of`` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tintray.numerics.choices import Format
from tintray.numerics.layout import Layout, Slot
from tintray.numerics.low_rank import LowRank
from tintray.vectors.stacks import Row, Stack, make_stack

TaskVector = Mapping[str, Tensor | LowRank]
"""What fine-tuning changed: tensor name -> its difference, dense or as a product."""

UP, DOWN = ".low_rank.up", ".low_rank.down"


def pack(vector: TaskVector) -> dict[str, Tensor]:
    """A task vector as named tensors; a product becomes two of them."""
    packed: dict[str, Tensor] = {}
    for name, row in vector.items():
        if isinstance(row, LowRank):
            packed |= {name + UP: row.up.contiguous(), name + DOWN: row.down.contiguous()}
        else:
            packed[name] = row
    return packed


def vector_key(base_digest: str, expert_digest: str) -> str:
    """The key under which a task vector is cached: of base and expert, whatever the site."""
    return f"{base_digest[:32]}{expert_digest[:32]}"


def row_of(names: Collection[str], tensor: Callable[[str], Tensor], name: str) -> Row:
    """One tensor of a packed task vector, read by ``tensor``; None where it has not changed."""
    if name in names:
        return tensor(name)
    if name + UP in names:
        return LowRank(tensor(name + UP), tensor(name + DOWN))
    return None


@dataclass(frozen=True)
class TaskVectors:
    """Base θ₀ [P] and task vectors T [K, P] in one layout; rows in the order of ``tasks``.

    Attributes
    ----------
    stacks
        T cut by tensor: one stack per slot of the layout.
    """

    layout: Layout
    tasks: tuple[str, ...]
    base: Tensor
    stacks: list[Stack]

    @classmethod
    def gather(
        cls,
        layout: Layout,
        tasks: Sequence[str],
        base: Tensor,
        rows: Callable[[Slot], Sequence[Row]],
        format: Format = "f32",
        *,
        mapped: bool = False,
        device: str = "cpu",
    ) -> TaskVectors:
        """Put T together tensor by tensor: ``rows(slot)`` gives every task's part of one."""
        stacks = [
            make_stack(rows(slot), slot.shape, format, mapped=mapped, device=device)
            for slot in layout.slots
        ]
        return cls(layout, tuple(tasks), base.to(device), stacks)

    def merge(self, coefficients: Tensor, out: Tensor | None = None) -> Tensor:
        """θ [P] = θ₀ + Λ·T for Λ [K, L]; written into ``out`` where given."""
        theta = torch.empty_like(self.base) if out is None else out
        spread = self.layout.spread(coefficients.to(theta.device))
        for column, (slot, stack) in enumerate(self._each()):
            stretch = slice(slot.start, slot.stop)
            mixed = stack.mix(spread[:, column].contiguous())
            torch.add(self.base[stretch], mixed, out=theta[stretch])
        return theta

    def project(self, gradient: Tensor) -> Tensor:
        """∂L/∂Λ [K, L] from ∂L/∂θ [P]."""
        columns = [stack.dots(gradient[slot.start : slot.stop]) for slot, stack in self._each()]
        return self.layout.fold(torch.stack(columns, dim=1))

    @property
    def matrix(self) -> Tensor:
        """T written out as one float32 array [K, P]: a copy, for small models."""
        return torch.cat([stack.dense() for stack in self.stacks], dim=1)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that T holds."""
        return sum(stack.nbytes for stack in self.stacks)

    def _each(self) -> zip[tuple[Slot, Stack]]:
        return zip(self.layout.slots, self.stacks, strict=True)
