"""Learning rates as functions of the round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Schedule = Callable[[int], float]
"""A learning rate for each round, counted from 0."""

Shape = Literal["constant", "cosine", "linear", "until_flat"]

HEAD_LR = 1e-2
"""Learning rate of a tinted head, where a job names none; measured."""

PROMPT_LR = 1e-2
"""That of a prompt."""

BLOCK_LR = 2e-3
"""The highest of any other tint layer; see :func:`tintray.tinting.partition.default_tint_lr`."""

BLOCK_LR_OF_WIDTH = 0.1
"""Learning rate times width of a tinted module that is wide; measured at widths of 128 and 384."""


@dataclass(frozen=True)
class Rates:
    """What moves how fast in each round of a fit."""

    coefficients: Schedule
    pace: Schedule  # the share of their highest rates at which tint layers learn
    correction: Schedule | None = None  # None: none is learned


def cooled_down(round_: int) -> int:
    """The last round of a fit that was flat after ``round_``, 1-based: a quarter more."""
    return round_ + max(1, round_ // 4)


def schedule(peak: float, shape: Shape, rounds: int, warmup: int = 0) -> Schedule:
    """Rise linearly over ``warmup`` rounds to ``peak``; then stay, or fall to zero.

    ``until_flat`` stays there and falls linearly over the last rounds, a quarter of those before.
    """

    def rate(round_: int) -> float:
        if round_ < warmup:
            return peak * (round_ + 1) / warmup
        if shape == "constant":
            return peak
        if shape == "until_flat":
            return peak * min(1.0, (rounds - round_) / max(1, rounds // 5))
        progress = (round_ - warmup) / max(1, rounds - warmup)
        if shape == "linear":
            return peak * (1 - progress)
        return peak * 0.5 * (1 + math.cos(math.pi * progress))

    return rate
