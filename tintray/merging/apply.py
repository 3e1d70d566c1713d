"""Apply a recipe: to one layer, or to every tensor of a model whose task vectors are in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tintray.layout import Slot
from tintray.merging.declaration import Layer
from tintray.merging.registry import Recipe
from tintray.task_vectors import TaskVectors

Statistics = Mapping[str, Mapping[str, Tensor]]
"""What was measured: kind -> tensor name -> [K, …]; see ``Layer.statistics``."""

_BLOCK = re.compile(r"\.(\d+)\.")
_AFTER = re.compile(r"\b(final|post|pooler|norm|layernorm|ln_f|head|classifier|lm_head)\b")


def depths(names: Iterable[str]) -> dict[str, float]:
    """Where each tensor sits: 0 before the first block … 1 in the last block and after it.

    A block's number is the first number in the name; a tensor without one comes before the blocks,
    unless it is called as what follows them (a final norm, a pooler, a head).
    """
    ordered = list(names)
    blocks = {n: int(m.group(1)) for n in ordered if (m := _BLOCK.search(n))}
    last = max(blocks.values(), default=0)
    if last == 0:
        return dict.fromkeys(ordered, 1.0)

    def depth(name: str) -> float:
        if name in blocks:
            # The first block counts 1 of last + 1 steps: embeddings are before it.
            return (blocks[name] + 1) / (last + 1)
        return 1.0 if _AFTER.search(name) else 0.0

    return {name: depth(name) for name in ordered}


def directions(layer: Layer, recipe: Recipe) -> Tensor:
    """D [K, …] of one layer; measures its thresholds where the method has some."""
    return recipe.method.directions(with_thresholds(layer, recipe), **recipe.parameters)


def own_deltas(layer: Layer, recipe: Recipe) -> Tensor:
    """Δ [K, …] of one layer, for a method that gives each task a backbone of its own."""
    own = recipe.method.own
    assert own is not None, f"{recipe.name} merges into one backbone"
    return own(with_thresholds(layer, recipe), **recipe.parameters)


def with_thresholds(layer: Layer, recipe: Recipe) -> Layer:
    """The layer with ``thresholds``, measured one task at a time."""
    rule = recipe.method.thresholds
    if rule is None or layer.thresholds is not None:
        return layer
    alone = [
        replace(layer, vectors=layer.vectors[k : k + 1], tasks=(name,))
        for k, name in enumerate(layer.tasks)
    ]
    found = torch.cat([rule(one, **recipe.parameters) for one in alone])
    return replace(layer, thresholds=found)


def layers(
    vectors: TaskVectors, recipe: Recipe, statistics: Statistics | None = None
) -> Iterator[tuple[Slot, Layer]]:
    """Every tensor of a model as a layer, ``totals`` included; views, nothing is copied."""
    where = depths(slot.name for slot in vectors.layout.slots)
    measured = statistics or {}

    def layer(slot: Slot) -> Layer:
        stretch = slice(slot.start, slot.stop)
        return Layer(
            slot.name,
            vectors.base[stretch].view(slot.shape),
            vectors.matrix[:, stretch].view(-1, *slot.shape),
            vectors.tasks,
            where[slot.name],
            recipe.seed,
            statistics={kind: of[slot.name] for kind, of in measured.items() if slot.name in of},
        )

    totals: Tensor | None = None
    if recipe.method.totals is not None:
        each = [recipe.method.totals(layer(slot)) for slot in vectors.layout.slots]
        totals = torch.stack(each).sum(0)
    for slot in vectors.layout.slots:
        yield slot, replace(layer(slot), totals=totals)


def direct(
    vectors: TaskVectors, recipe: Recipe, statistics: Statistics | None = None
) -> TaskVectors:
    """The method's directions in place of the task vectors: T becomes D, written into ``matrix``.

    One tensor's worth of memory is used beside it.
    """
    for slot, layer in layers(vectors, recipe, statistics):
        found = directions(layer, recipe)
        vectors.matrix[:, slot.start : slot.stop] = found.reshape(len(found), -1)
    return vectors
