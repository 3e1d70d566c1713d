"""Named tensors ↔ one flat vector, cut into layer units.

A *layer unit* is what one merging coefficient multiplies: a tensor by default, a block or the
whole backbone on request. All shared tensors of a backbone live in one flat vector of P
numbers, so that a merge or a projection is one matrix–vector product per unit and a gradient is
one array to send.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

Granularity = Literal["tensor", "block", "task"]

_BLOCK = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True)
class Slot:
    """Where one tensor lives in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class LayerUnit:
    """A stretch of the flat vector that one coefficient per task multiplies."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """The order of the shared tensors in the flat vector, and the units it is cut into."""

    slots: tuple[Slot, ...]
    units: tuple[LayerUnit, ...]

    @property
    def numel(self) -> int:
        """P, the length of the flat vector."""
        return self.slots[-1].stop if self.slots else 0

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Each tensor as a view into ``flat`` [P]; no copy."""
        return {slot.name: flat[slot.start : slot.stop].view(slot.shape) for slot in self.slots}

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """Copy the layout's tensors out of ``named`` into one new float32 vector [P]."""
        flat = torch.empty(self.numel)
        for slot in self.slots:
            flat[slot.start : slot.stop] = named[slot.name].reshape(-1)
        return flat

    def to_json(self) -> list[dict[str, Any]]:
        """The units with their bounds, for a manifest."""
        return [{"name": u.name, "start": u.start, "stop": u.stop} for u in self.units]


def build_layout(
    shapes: Mapping[str, Sequence[int]], granularity: Granularity = "tensor"
) -> Layout:
    """Lay out tensors in the order given, and cut them into units of ``granularity``.

    Tensors of one block are put next to each other even where the model declares them apart,
    since a unit is one contiguous stretch.
    """
    keys: dict[str, list[str]] = {}
    for name in shapes:
        keys.setdefault(_unit_of(name, granularity), []).append(name)
    slots: list[Slot] = []
    position = 0
    for names in keys.values():
        for name in names:
            shape = tuple(shapes[name])
            size = torch.Size(shape).numel()
            slots.append(Slot(name, shape, position, position + size))
            position += size
    units: list[LayerUnit] = []
    for key, group in groupby(slots, key=lambda slot: _unit_of(slot.name, granularity)):
        members = list(group)
        units.append(LayerUnit(key, members[0].start, members[-1].stop))
    return Layout(tuple(slots), tuple(units))


def _unit_of(name: str, granularity: Granularity) -> str:
    if granularity == "tensor":
        return name
    if granularity == "task":
        return "backbone"
    block = _BLOCK.match(name)  # "vit.layers.5.mlp.fc1.weight" belongs to "vit.layers.5"
    return block.group(1) if block else ".".join(name.split(".")[:2])
