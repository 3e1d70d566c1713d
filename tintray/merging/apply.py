"""Apply a recipe: to one layer, or to every tensor of a model whose task vectors are in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tintray.merging.declaration import Layer
from tintray.merging.registry import Recipe
from tintray.numerics.choices import Format
from tintray.numerics.layout import Slot
from tintray.vectors.stacks import make_stack
from tintray.vectors.task_vectors import TaskVectors

Statistics = Callable[[str], Mapping[str, Tensor]]
"""A tensor's name to what was measured of it, by kind; see ``Layer.statistics``."""

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
    """D [K, …] of one layer; measures its thresholds, task by task, where a method has some."""
    rule = recipe.method.thresholds
    if rule is not None and layer.thresholds is None:
        alone = (
            replace(layer, vectors=layer.vectors[k : k + 1], tasks=(name,))
            for k, name in enumerate(layer.tasks)
        )
        thresholds = torch.cat([rule(one, **recipe.parameters) for one in alone])
        layer = replace(layer, thresholds=thresholds)
    return recipe.method.directions(layer, **recipe.parameters)


def layers(
    vectors: TaskVectors,
    recipe: Recipe,
    statistics: Statistics = lambda _: {},
    *,
    where: Mapping[str, float] | None = None,
    totals: Tensor | None = None,
) -> Iterator[tuple[Slot, Layer]]:
    """Every tensor of a model as a layer, ``totals`` included; one tensor is in float32 at a time.

    A layer is where the task vectors are, its statistics too.

    Parameters
    ----------
    where
        The depth of each tensor, where the vectors are a part of a model; see ``depths``.
    totals
        Sums over the whole model, where they are known; else they are taken over these tensors.
    """
    at = where or depths(slot.name for slot in vectors.layout.slots)
    if totals is None and recipe.method.totals is not None:
        totals = torch.stack(partial_totals(vectors, recipe, at)).sum(0)
    for slot, layer in _layers(vectors, recipe, at, statistics):
        yield slot, replace(layer, totals=totals).on(layer.base.device)


def partial_totals(
    vectors: TaskVectors, recipe: Recipe, where: Mapping[str, float]
) -> list[Tensor]:
    """What a method sums over a model, of each tensor by itself; all of them make ``totals``."""
    rule, found = recipe.method.totals, _layers(vectors, recipe, where, lambda _: {})
    return [rule(layer) for _, layer in found] if rule else []


def _layers(
    vectors: TaskVectors, recipe: Recipe, where: Mapping[str, float], statistics: Statistics
) -> Iterator[tuple[Slot, Layer]]:
    for slot, stack in zip(vectors.layout.slots, vectors.stacks, strict=True):
        base = vectors.base[slot.start : slot.stop].view(slot.shape)
        dense = stack.dense().view(-1, *slot.shape)
        known = (vectors.tasks, where[slot.name], recipe.seed)
        yield slot, Layer(slot.name, base, dense, *known, statistics=statistics(slot.name))


def direct(
    vectors: TaskVectors,
    recipe: Recipe,
    statistics: Statistics = lambda _: {},
    *,
    where: Mapping[str, float] | None = None,
    totals: Tensor | None = None,
    format: Format = "f32",
) -> TaskVectors:
    """The method's directions in place of the task vectors, tensor by tensor, in a format.

    The vectors that are given go with them.
    """
    found = layers(vectors, recipe, statistics, where=where, totals=totals)
    for number, (slot, layer) in enumerate(found):
        rows, device = [*directions(layer, recipe)], str(layer.base.device)
        vectors.stacks[number] = make_stack(rows, slot.shape, format, device=device)
    return replace(vectors)  # nothing that was recorded of the old ones
