"""Whether a model's confidence means what it says: ECE, Brier score, histogram, temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tintray.tasks.confidence import confidence

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """One model on one set of examples."""

    # share of the examples by confidence, in ``BINS`` equal bins of [0, 1]; sums to 1
    histogram: list[float]
    mean_confidence: float
    # ``None`` where there are no labels to tell
    # mean |accuracy − confidence| of the bins, weighted by their examples (Guo et al., arXiv
    # 1706.04599, eq. 3); mean squared distance of the probabilities to the true class, in [0, 2]
    # (Brier, 1950)
    ece: float | None = None
    brier: float | None = None


def calibration(logits: Tensor, labels: Tensor | None) -> Calibration:
    """How sure a model is, and whether rightly: from logits [N, C], labels [N] or none."""
    sure = confidence(logits).double()
    # (0, 1/B], (1/B, 2/B], …; as published, closed on the right
    bins = (sure * BINS).ceil().long().clamp(1, BINS) - 1
    histogram = (torch.bincount(bins, minlength=BINS).double() / len(sure)).tolist()
    if labels is None:
        return Calibration(histogram, sure.mean().item())
    right = (logits.argmax(-1) == labels).double()
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, right - sure)
    truth = functional.one_hot(labels, logits.shape[-1]).to(logits)
    brier = (logits.softmax(-1) - truth).square().sum(-1).mean().item()
    return Calibration(histogram, sure.mean().item(), (gaps.abs().sum() / len(sure)).item(), brier)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature under which labels [N] are likeliest given logits [N, C], in [0.05, 20].

    Temperature scaling (Guo et al., arXiv 1706.04599, section 4.2): the negative log-likelihood has
    one minimum in 1/temperature, found by golden-section search on its logarithm.
    """

    def cost(exponent: float) -> float:
        return functional.cross_entropy(logits.double() * 10.0**-exponent, labels).item()

    low, high = -1.3010299956639813, 1.3010299956639813  # log10 of 1/20 and of 20
    golden = (5**0.5 - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if cost(left) <= cost(right) else (left, high)
    return float(10 ** ((low + high) / 2))
