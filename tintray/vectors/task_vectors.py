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
from functools import cached_property

import torch
from torch import Tensor

from tintray.numerics.choices import Format
from tintray.numerics.graphs import Recordings
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
        spread = self.layout.spread(coefficients)
        if theta.is_cuda:
            return theta.copy_(self._recorded.merge(spread))
        self._merge(spread.to(theta.device), theta)
        return theta

    def project(self, gradient: Tensor) -> Tensor:
        """∂L/∂Λ [K, L] from ∂L/∂θ [P]."""
        found = self._recorded.project(gradient) if gradient.is_cuda else self._project(gradient)
        return self.layout.fold(found)

    def _merge(self, spread: Tensor, theta: Tensor) -> None:
        """θ for coefficients by tensor, [K, S]."""
        weights = spread.t().contiguous()
        for own, (slot, stack) in zip(weights, self._each(), strict=True):
            stretch = slice(slot.start, slot.stop)
            stack.add_mixed(self.base[stretch], own, theta[stretch])

    def _project(self, gradient: Tensor) -> Tensor:
        """∂L/∂Λ by tensor, [K, S]."""
        columns = [stack.dots(gradient[slot.start : slot.stop]) for slot, stack in self._each()]
        return torch.stack(columns, dim=1)

    @cached_property
    def _recorded(self) -> _Recorded:
        """What is computed in a round on a GPU, and the tensors that it reads and writes."""
        return _Recorded(self)

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


class _Recorded:
    """Merging and projecting on a GPU, of whose hundreds of kernels each takes microseconds."""

    def __init__(self, vectors: TaskVectors) -> None:
        self._vectors, base = vectors, vectors.base
        self._recordings = Recordings(base.device)
        self._spread = base.new_zeros(len(vectors.tasks), len(vectors.layout.slots))
        self._projected = torch.zeros_like(self._spread)
        self._theta, self._gradient = torch.empty_like(base), torch.empty_like(base)

    def merge(self, spread: Tensor) -> Tensor:
        """θ [P] for coefficients by tensor [K, S]; it holds until the next call."""
        self._spread.copy_(spread)
        self._recordings.run("merge", self._merge)
        return self._theta

    def project(self, gradient: Tensor) -> Tensor:
        """∂L/∂Λ by tensor [K, S] from ∂L/∂θ [P]; it holds until the next call."""
        self._gradient.copy_(gradient)
        self._recordings.run("project", self._project)
        return self._projected

    def _merge(self) -> None:
        self._vectors._merge(self._spread, self._theta)

    def _project(self) -> None:
        self._projected.copy_(self._vectors._project(self._gradient))
