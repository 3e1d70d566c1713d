"""Which sites, ranks and bits a budget buys.

There is a ladder of sites from cheap to dear. Each rung has all that the one below it has, and
more: the head, then prompts of growing rank, then low-rank products in the first block, then a
first block of its own. A budget buys the highest rung that fits it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod

from torch import nn

from tintray.errors import SpecError
from tintray.models.norms import norm_buffers
from tintray.models.prompts import find_prompt
from tintray.models.structure import head_modules, private_state
from tintray.numerics.choices import Bits
from tintray.numerics.sites import HEAD, PROMPT, TintSite
from tintray.tinting.partition import Partition, partition
from tintray.tinting.site_search import blocks
from tintray.tinting.stored_tints import LADDER, stored_bytes

Shape = tuple[int, ...]
Sites = tuple[TintSite, ...]

RANKS = (1, 2, 4, 8, 16)
"""Ranks of a prompt from which the budget chooses."""

ENOUGH = 4
"""The rank of a prompt from which on it is stored in float32, where that fits the budget."""

BLOCK_RANKS = (2, 8, 32)
"""Ranks of products in the first block."""


def ladder(module: nn.Module) -> list[Sites]:
    """Sites from cheap to dear, as far as the model has them; see the module."""
    head = (TintSite(HEAD),) if head_modules(module) else ()
    prompts: list[Sites] = []
    with suppress(SpecError):
        prompts = with_ranks(module, (TintSite(PROMPT), *head))
    first = next(iter(blocks(module)), None)
    sites = [head, *prompts]
    if first is not None:
        low = [TintSite(first, rank) for rank in BLOCK_RANKS]
        sites += [(*sites[-1][:-1], block, *head) for block in (*low, TintSite(first))]
    rungs: list[Sites] = []
    least = math.inf
    for rung in reversed(sites):  # in a narrow block, products of high rank are no bargain
        if rung and (numbers := _numbers(module, rung)) is not None and numbers < least:
            rungs, least = [rung, *rungs], numbers
    return rungs


def with_ranks(module: nn.Module, sites: Sites) -> list[Sites]:
    """The same sites with every rank that a prompt without one may have, from low to high."""
    at = next((i for i, site in enumerate(sites) if (site.at, site.rank) == (PROMPT, None)), None)
    if at is None or not (tables := find_prompt(module).tables):
        return [sites]
    most = min(min(_matrix(tuple(module.get_parameter(name).shape))) for name in tables)
    ranks = [rank for rank in RANKS if rank <= most] or [most]
    return [(*sites[:at], replace(sites[at], rank=r), *sites[at + 1 :]) for r in ranks]


def enough_in(rungs: Sequence[Sites]) -> int:
    """The first of the rungs whose prompt has the rank ``ENOUGH``; the first where none has."""
    ranks = [max((site.rank or 0 for site in sites), default=0) for sites in rungs]
    return next((index for index, rank in enumerate(ranks) if rank >= ENOUGH), 0)


def _numbers(module: nn.Module, sites: Sites) -> int | None:
    """How many numbers a task owns there beside its head; None where the model has no such place.

    Sites that overlap are no such place either.
    """
    try:
        return sum(map(prod, owned_shapes(partition(module, sites))))
    except SpecError:
        return None


def owned_shapes(split: Partition) -> list[Shape]:
    """Shapes of what every task owns beside its head."""
    heads = tuple(f"{path}." for path in head_modules(split.module))
    own = private_state(split.module, split.private) | norm_buffers(split.module)
    shapes = [tuple(tensor.shape) for name, tensor in own.items() if not name.startswith(heads)]
    for name, rank in split.low_rank.items():
        rows, columns = _matrix(tuple(split.module.get_parameter(name).shape))
        r = min(rank, rows, columns)
        shapes += [(rows, r), (r, columns)]
    return shapes


def _matrix(shape: Shape) -> tuple[int, int]:
    return prod(shape[:-1]), shape[-1]


def costs(
    owned: Sequence[Shape], heads: Sequence[Sequence[Shape]], numbers: bool = False
) -> dict[Bits, float]:
    """What the mean task owns, its head included, by the bits that a number has: in bytes.

    ``heads`` are the shapes of every task's head; with ``numbers`` it is how many there are.
    """

    def cost(shapes: Sequence[Shape], bits: Bits) -> int:
        return sum(prod(s) if numbers else stored_bytes(s, bits) for s in shapes)

    return {
        bits: cost(owned, bits) + sum(cost(head, bits) for head in heads) / max(1, len(heads))
        for bits in LADDER
    }


def choose(
    budget: float,
    rungs: Sequence[Mapping[Bits, float]],
    allowed: Sequence[Bits] = LADDER,
    enough: int | None = None,
) -> tuple[int, Bits] | None:
    """The highest rung that a budget buys, and the most bits that it buys there.

    Parameters
    ----------
    rungs
        The cost of each rung by bits, from cheap to dear.
    allowed
        The bits that may be chosen. 4 bits, the coarsest, are taken only where nothing fits in
        more.
    enough
        The rung from which on float32 is preferred to a higher rung in fewer bits.

    Returns
    -------
    The rung's index and the bits; None where not even the lowest fits.
    """
    highest = {
        bits: max((i for i, cost in enumerate(rungs) if cost[bits] <= budget), default=-1)
        for bits in sorted(allowed, reverse=True)
    }
    if enough is not None and highest.get(32, -1) >= enough:
        return highest[32], 32
    for some in ([bits for bits in highest if bits > 4], list(highest)):
        index, bits = max(((highest[bits], bits) for bits in some), default=(-1, 32))
        if index >= 0:
            return index, bits
    return None
