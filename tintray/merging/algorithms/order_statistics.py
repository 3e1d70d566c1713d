"""Exact order statistics of magnitudes, at the price of little more than reading them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

_SMALL = 2**17  # numbers that are partitioned at once, and that a piece has
_SAMPLE = 2**16
_SPREAD = 5.0  # standard errors of the sample's quantile on either side


def value_at(numbers: Tensor, position: int) -> float:
    """The ``position``-th smallest of some numbers [n], counted from 0."""
    if numbers.device.type == "cpu":
        return float(np.partition(numbers.numpy(), position)[position])
    return float(numbers.kthvalue(position + 1).values)


def magnitude_at(row: Tensor, position: int) -> float:
    """The ``position``-th smallest of |row| [n], counted from 0.

    In memory a regular sample brackets the answer; one pass counts what lies below the bracket and
    gathers what lies in it. Where the sample misleads, all numbers are partitioned.
    """
    if row.device.type != "cpu":
        return value_at(row.abs(), position)
    numbers = row.numpy()
    if len(numbers) > _SMALL:
        found = _bracketed(numbers, position)
        if found is not None:
            return found
    return float(np.partition(np.abs(numbers), position)[position])


def _bracketed(numbers: Any, position: int) -> float | None:
    sample = np.sort(np.abs(numbers[:: len(numbers) // _SAMPLE]))
    share = position / len(numbers)
    middle = share * len(sample)
    spread = _SPREAD * (share * (1 - share) * len(sample)) ** 0.5 + 2
    first, last = int(middle - spread), int(middle + spread) + 1
    low = float(sample[first]) if first >= 0 else -1.0
    high = float(sample[last]) if last < len(sample) else float("inf")
    below, within = 0, []
    buffer = np.empty(_SMALL, dtype=numbers.dtype)
    for start in range(0, len(numbers), _SMALL):
        piece = numbers[start : start + _SMALL]
        sizes = np.abs(piece, out=buffer[: len(piece)])
        at_least, above = sizes >= low, sizes > high
        below += len(piece) - int(np.count_nonzero(at_least))
        within.append(sizes[np.flatnonzero(at_least ^ above)])
    candidates = np.concatenate(within)
    index = position - below
    if not 0 <= index < len(candidates):
        return None
    candidates.partition(index)
    return float(candidates[index])
