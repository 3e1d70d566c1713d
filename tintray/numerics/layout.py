"""Named tensors ↔ one flat vector, cut into layer units.

A *layer unit* is what one merging coefficient multiplies: a tensor by default, a block or the
whole backbone on request. All shared tensors of a backbone live in one flat vector of P
numbers, so that a merge or a projection is one matrix–vector product per unit and a gradient is
one array to send.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from tintray.numerics.choices import Granularity

Theta = Tensor | Sequence[Tensor]
"""A flat vector [P], whole or in consecutive pieces that cut no tensor."""


ALIGNMENT = 16
"""Numbers; where a vector is cut, so that tensors lie in memory alike however it is cut."""

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

    def views(self, flat: Theta) -> dict[str, Tensor]:
        """Each tensor as a view into ``flat`` [P]; no copy."""
        pieces = [flat] if isinstance(flat, Tensor) else list(flat)
        views: dict[str, Tensor] = {}
        number, origin = 0, 0
        for slot in self.slots:
            while slot.stop > origin + len(pieces[number]):
                origin += len(pieces[number])
                number += 1
            whole = pieces[number][slot.start - origin : slot.stop - origin]
            views[slot.name] = whole.view(slot.shape)
        return views

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """Copy the layout's tensors out of ``named`` into a new float32 vector [P] beside them."""
        device = named[self.slots[0].name].device if self.slots else None
        flat = torch.empty(self.numel, device=device)
        for slot in self.slots:
            flat[slot.start : slot.stop] = named[slot.name].reshape(-1)
        return flat

    # -- in parts ------------------------------------------------------------------------------

    def stretches(self, parts: int) -> list[range]:
        """Cut the slots, in order, into at most so many stretches of nearly equal length.

        A tensor is never cut. Cuts lie where ``ALIGNMENT`` numbers divide the position: a processor
        may sum in another order where memory is aligned otherwise, and no result may depend on it.
        """
        starts = {slot.start: n for n, slot in enumerate(self.slots)}
        allowed = [start for start in starts if start % ALIGNMENT == 0 and start > 0]
        cuts = {0, len(self.slots)}
        for part in range(1, parts):
            if allowed:
                goal = self.numel * part / parts
                cuts.add(starts[min(allowed, key=lambda start: abs(start - goal))])
        return [range(first, last) for first, last in pairwise(sorted(cuts))]

    def part(self, stretch: range) -> Layout:
        """A stretch of the slots as a layout of its own, in which every tensor is a unit."""
        slots = [self.slots[n] for n in stretch]
        origin = slots[0].start
        moved = [replace(s, start=s.start - origin, stop=s.stop - origin) for s in slots]
        return Layout(tuple(moved), tuple(LayerUnit(s.name, s.start, s.stop) for s in moved))

    def bounds(self, stretch: range) -> slice:
        """Where a stretch of the slots lies in the flat vector."""
        return slice(self.slots[stretch.start].start, self.slots[stretch.stop - 1].stop)

    def spread(self, by_unit: Tensor) -> Tensor:
        """[K, L] → [K, S]: each tensor gets the column of its unit."""
        return by_unit if self._tensors_are_units else by_unit[:, self._units_of_slots]

    def fold(self, by_slot: Tensor) -> Tensor:
        """[K, S] → [K, L]: the columns of a unit's tensors are summed, in their order."""
        if self._tensors_are_units:
            return by_slot
        folded = by_slot.new_zeros(len(by_slot), len(self.units))
        for column, unit in enumerate(self._units_of_slots):
            folded[:, unit] += by_slot[:, column]
        return folded

    @property
    def _tensors_are_units(self) -> bool:
        return len(self.units) == len(self.slots)

    @cached_property
    def _units_of_slots(self) -> list[int]:
        units, unit = [], 0
        for slot in self.slots:
            while unit + 1 < len(self.units) and self.units[unit].stop <= slot.start:
                unit += 1
            units.append(unit)
        return units

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
            shape, start = tuple(shapes[name]), position
            position += math.prod(shape)
            slots.append(Slot(name, shape, start, position))
    units: list[LayerUnit] = []
    for key, group in groupby(slots, key=lambda slot: _unit_of(slot.name, granularity)):
        members = list(group)
        units.append(LayerUnit(key, members[0].start, members[-1].stop))
    return Layout(tuple(slots), tuple(units))


def _unit_of(name: str, granularity: Granularity) -> str:
    if granularity == "tensor":
        return name
    return "backbone" if granularity == "task" else block_of(name)


def block_of(name: str) -> str:
    """The block that a tensor belongs to: ``vit.layers.5`` of ``vit.layers.5.mlp.fc1.weight``."""
    block = _BLOCK.match(name)
    return block.group(1) if block else ".".join(name.split(".")[:2])
