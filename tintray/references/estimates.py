"""How many answers to new examples are right, estimated without a label.

An answer counts as right if it is surer than a threshold, which is set so that it tells the known
accuracy on the known examples (average thresholded confidence; Garg et al., arXiv 2201.04234). Two
scores are compared with thresholds of their own: the entropy, which the authors recommend, and the
largest probability; how far they are apart goes into the error. A model that calls everything the
same is sure of it, so no more answers are taken for right than the shares of classes allow that
were known. Where an example has many answers, the difference of mean confidences is taken instead
(Guillory et al., arXiv 2107.03315).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from tintray.tasks.evaluation import TaskScore

_SURE = 1.96  # standard errors on either side that hold 95 %


@dataclass(frozen=True)
class Estimate:
    """A share of right answers, without a label; ``error`` lies on either side of it."""

    metric: str  # "accuracy", "token_accuracy", or "agreement" with the expert
    known: float  # when the merge was made
    value: float
    error: float
    by: str  # how it was estimated


def known_share(score: TaskScore) -> tuple[str, float]:
    """The share of answers that a task is known to have right; else that as the expert's."""
    if score.metric in ("accuracy", "token_accuracy"):
        return score.metric, score.merged
    return "agreement", score.agreement


def thresholds(numbers: Mapping[str, Tensor], accuracy: float) -> dict[str, float]:
    """By score, what a share ``accuracy`` of the known examples exceeds."""
    share = min(1.0, max(0.0, 1 - accuracy))
    return {name: float(of.double().quantile(share)) for name, of in _scores(numbers).items()}


def by_thresholds(
    least: Mapping[str, float], numbers: Mapping[str, Tensor], moved: float, known: int
) -> tuple[float, float]:
    """The share of right answers among new examples, and its error on either side.

    ``moved`` is the share of answers that are of other classes than among the ``known`` examples.
    """
    scores = _scores(numbers)
    shares = {n: float((of.double() > least[n]).double().mean()) for n, of in scores.items()}
    found, other = shares["entropy"], shares["confidence"]
    value = min(found, 1 - moved)
    spread = abs(found - other) + (found - value) / 2
    examples = len(numbers["confidence"])
    return value, spread + _sampling(value, examples, known)


def by_confidence(accuracy: float, confidence: Tensor, known: Tensor) -> tuple[float, float]:
    """The same by the difference of mean confidences [N] and [M]."""
    lost = float(known.double().mean() - confidence.double().mean())
    value = min(1.0, max(0.0, accuracy - lost))
    return value, abs(lost) / 2 + _sampling(value, len(confidence), len(known))


def _scores(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"confidence": numbers["confidence"], "entropy": -numbers["entropy"]}


def _sampling(share: float, examples: int, known: int) -> float:
    """What chance adds to a share of so many examples, by a threshold of so many."""
    return _SURE * sqrt(max(share * (1 - share), 0.01) * (1 / examples + 1 / known))
