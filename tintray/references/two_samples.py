"""Whether two samples are of one distribution: statistics, with p-values by permutation.

Whichever statistic it is, its p-value is the share of random splits of both samples together under
which it is at least as large (Phipson and Smyth, 2010). That holds for few examples, for ties and
for statistics whose distribution nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tintray.numerics.randomness import stream

PERMUTATIONS = 999

_SMOOTHING = 0.5
"""Added to the count of each class, so that no share is zero."""


@dataclass(frozen=True)
class Difference:
    """One comparison; ``adjusted`` is the p-value after correction for all that were made."""

    of: str
    statistic: str
    value: float
    p: float
    adjusted: float


def compare(known: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> list[Difference]:
    """Compare what was observed of M known and of N new examples, by what both have.

    One number an example [M], [N] is compared by the Kolmogorov–Smirnov distance; shares of classes
    [M, C] by the population stability index; features [M, D] by the maximum mean discrepancy. The
    p-values are corrected by Holm's method: the chance that any is too low by accident is bounded.
    """
    names = [name for name in known if name in new]
    if not names:
        return []
    splits = _splits(len(known[names[0]]), len(new[names[0]]))
    found = []
    for name in names:
        values = torch.cat([known[name].float(), new[name].float()])
        statistic, of_splits = _statistic(name, values, splits)
        p = float((of_splits >= of_splits[0] - 1e-9).double().mean())
        found.append((name, statistic, float(of_splits[0]), p))
    adjusted = holm([p for *_, p in found])
    return [Difference(*told, p) for told, p in zip(found, adjusted, strict=True)]


def _statistic(name: str, values: Tensor, splits: Tensor) -> tuple[str, Tensor]:
    if name == "classes":
        return "population stability index", stability(values, splits)
    if values.ndim == 1:
        return "Kolmogorov–Smirnov", kolmogorov_smirnov(values, splits)
    return "maximum mean discrepancy", mean_discrepancy(values, splits)


def _splits(known: int, new: int) -> Tensor:
    """Which of all examples are new: bool [1 + PERMUTATIONS, known + new], first as they are."""
    total, random = known + new, stream(0, "drift")
    keys = torch.rand(1 + PERMUTATIONS, total, generator=random)
    keys[0] = torch.arange(total)
    return keys.argsort(1).argsort(1) >= known


def kolmogorov_smirnov(values: Tensor, splits: Tensor) -> Tensor:
    """The largest distance [P] between the distributions of two samples of ``values`` [T].

    ``splits`` bool [P, T] say which are of the second.
    """
    order = values.argsort()
    ordered = values[order]
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    return _weights(splits)[:, order].cumsum(1)[:, last].abs().amax(1)


def stability(shares: Tensor, splits: Tensor) -> Tensor:
    """The population stability index [P], Σ (q − p) ln(q / p) over classes, of ``shares`` [T, C].

    A common rule of thumb calls 0.1 a change, and 0.25 a large one.
    """
    second = splits.float()
    p, q = (
        (of @ shares + _SMOOTHING) / (of.sum(1, keepdim=True) + _SMOOTHING * shares.shape[1])
        for of in (1 - second, second)
    )
    return ((q - p) * (q / p).log()).sum(1)


def mean_discrepancy(features: Tensor, splits: Tensor) -> Tensor:
    """The squared maximum mean discrepancy [P] of ``features`` [T, D] (Gretton et al., 2012).

    The kernel is a Gaussian; its width is the median distance of two examples.
    """
    exact = "donot_use_mm_for_euclid_dist"  # of features that lie close together far from zero
    distances = torch.cdist(features, features, compute_mode=exact).square()
    width = distances[~torch.eye(len(features), dtype=torch.bool)].median().clamp_min(1e-12)
    kernel = (-distances / width).exp()
    weights = _weights(splits)
    return ((weights @ kernel) * weights).sum(1)


def _weights(splits: Tensor) -> Tensor:
    """The weight of each example in the difference of two means, [P, T]."""
    second = splits.float()
    return second / second.sum(1, keepdim=True) - (1 - second) / (1 - second).sum(1, keepdim=True)


def holm(p_values: list[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979), in the same order."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, n in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, p_values[n] * (len(p_values) - rank)))
        adjusted[n] = least
    return adjusted
