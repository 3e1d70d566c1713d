"""The memory that a merging method takes for a tensor, known before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tintray.errors import SpecError
from tintray.merging.registry import Recipe

MEMORY = 2 * 2**30
"""Bytes that a merge may hold where nobody says otherwise."""

PIECES = (2**18, 2**16)
"""Numbers of each checkpoint at a time: larger ones where they fit."""
WAITING = 2
"""Merged pieces that wait to be written, beside those that are being merged."""
FLOAT = 4

_TEMPORARIES = 4  # arrays like its input that an elementwise method holds, its result included


def needed_bytes(
    recipe: Recipe, numel: int, tasks: int, size: int = PIECES[-1], workers: int = 1
) -> int:
    """Bytes to merge one tensor: what is read, what the method holds, the results.

    Where the method takes pieces they have ``size`` numbers, and ``workers`` are merged at once.
    """
    method = recipe.method
    if not method.elementwise:
        return int((tasks + 1 + method.workspace * tasks + 2) * numel * FLOAT)
    results = (workers + WAITING) * (1 if method.own is None else tasks)
    arrays = workers * (tasks + 1 + _TEMPORARIES * tasks) + results
    needed = arrays * min(numel, size) * FLOAT
    if method.thresholds is not None:  # whole tensors: the base, and of each a task, sizes, a copy
        needed += (1 + 3 * workers) * numel * FLOAT
    return needed


def check_memory(
    recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], tasks: int, memory: int
) -> None:
    """Refuse a bound on memory that the largest tensor exceeds; statistics come on top."""
    for name, shape in shapes.items():
        needed = needed_bytes(recipe, math.prod(shape), tasks)
        check_fits(recipe.name, name, shape, tasks, needed, memory)


def check_fits(
    method: str, name: str, shape: tuple[int, ...], models: int, needed: int, memory: int
) -> None:
    """Refuse a tensor that ``needed`` bytes of ``memory`` are not enough for."""
    if needed > memory:
        raise SpecError(
            f"merge.memory: '{method}' needs {mebibytes(needed)} for tensor '{name}' "
            f"{list(shape)} of {models} models, the bound is {mebibytes(memory)}; raise "
            "merge.memory (--memory), or choose an elementwise method such as task_arithmetic"
        )


def mebibytes(count: int) -> str:
    """A size as people read it."""
    return f"{count / 2**20:,.0f} MiB"
