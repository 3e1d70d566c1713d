"""How many answers to new examples are right, estimated without a label.

Two ways see different failures, and both are told as how far accuracy fell. By *sureness*: an
answer counts as right if its entropy is below a threshold, which is set so that it tells the known
accuracy on the known examples (average thresholded confidence; Garg et al., arXiv 2201.04234); here
it is a smooth step, which chance moves less. By *mix*: a model that calls everything the same is
sure of it, so that answers count as far as they are sure, but of each class no more of them, the
surest, than its known share (confidence optimal transport; Lu et al., arXiv 2305.15640, for answers
that say nothing of other classes).

Both ways overstate a fall on one task and understate it on the next. Their weights are learned
where the true fall is nearly known: on known examples that are disturbed on purpose, from how many
answers stay as they were. Where an example has many answers, the difference of mean confidences is
taken instead (Guillory et al., arXiv 2107.03315).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple, Self

import torch
from torch import Tensor

from tintray.numerics.randomness import stream
from tintray.tasks.evaluation import TaskScore

Weights = tuple[float, float]
"""What a fall by sureness counts, and what one by mix does."""

EVEN: Weights = (0.5, 0.5)
"""Where nothing could be tried."""

_SURE = 1.96  # standard errors on either side that hold 95 %
_STEP = 0.3  # width of the smooth step, as a share of the threshold
_DRAWS = 20  # samples of the known examples, for what chance does to a mix
_EVEN = 1 / 3  # how much even weights count beside what was learned, in squared falls


@dataclass(frozen=True)
class Estimate:
    """A share of right answers, without a label; ``error`` lies on either side of it."""

    metric: str  # "accuracy", "token_accuracy", or "agreement" with the expert
    known: float  # when the merge was made
    value: float
    error: float
    by: str  # how it was estimated


class Answers(NamedTuple):
    """Answers to N examples, one to each."""

    confidence: Tensor  # [N]
    entropy: Tensor  # [N], in nats
    classes: Tensor  # [N, C], 1 at the class that was answered

    def at(self, rows: Tensor) -> Self:
        """Those to some examples."""
        return type(self)(*(of[rows] for of in self))


def known_share(score: TaskScore) -> tuple[str, float]:
    """The share of answers that a task is known to have right; else that as the expert's."""
    if score.metric in ("accuracy", "token_accuracy"):
        return score.metric, score.merged
    return "agreement", score.agreement


def threshold(entropy: Tensor, accuracy: float) -> float:
    """The entropy that a share ``accuracy`` of the known examples [N] does not exceed."""
    return float(entropy.double().quantile(min(1.0, max(0.0, accuracy))))


def falls(known: Answers, new: Answers, least: float) -> Tensor:
    """How far accuracy fell from the known to the new examples by sureness and by mix, [2].

    Chance alone lets the mix of a sample differ: what it costs samples of the known examples is no
    fall.
    """
    random = stream(0, "drift", "falls")

    def drawn(count: int) -> Answers:
        return known.at(torch.randint(len(known.entropy), (count,), generator=random))

    usual = [
        _by_mix(drawn(len(new.entropy)), _mix(drawn(len(known.entropy)))) for _ in range(_DRAWS)
    ]
    by_sureness = _by_sureness(known, least) - _by_sureness(new, least)
    return torch.stack([by_sureness, torch.stack(usual).mean() - _by_mix(new, _mix(known))])


def learned(
    known: Answers,
    same: Answers,
    disturbed: Sequence[Answers],
    least: float,
    accuracy: float,
) -> Weights:
    """Weights under which the falls on examples that were ``disturbed`` are the true ones.

    ``same`` are the answers to these examples as they are. An answer that stays is taken to be
    right as often as the known ones, one that changes to be any other: that is the true fall, but
    for examples that are right both times by chance. Ridge regression, towards even weights.
    """
    mix = _mix(known)
    others = max(int((mix > 0).sum()) - 1, 1)

    def told(of: Answers) -> Tensor:
        return torch.stack([_by_sureness(of, least), _by_mix(of, mix)])

    stay = torch.stack([(of.classes * same.classes).sum(1).double().mean() for of in disturbed])
    fell = accuracy - (accuracy * stay + (1 - accuracy) * (1 - stay) / others)
    seen = torch.stack([told(same) - told(of) for of in disturbed])
    even = torch.tensor(EVEN, dtype=torch.float64)
    found = torch.linalg.solve(
        seen.T @ seen + _EVEN * torch.eye(2, dtype=torch.float64), seen.T @ fell + _EVEN * even
    )
    return float(found[0]), float(found[1])


def by_falls(
    accuracy: float, weights: Weights, known: Answers, new: Answers, least: float
) -> tuple[float, float]:
    """The share of right answers among new examples, and its error on either side.

    The error is that of two samples, and half of what both ways differ by.
    """
    by_sureness, by_mix = falls(known, new, least).tolist()
    value = min(1.0, max(0.0, accuracy - weights[0] * by_sureness - weights[1] * by_mix))
    chance = _sampling(value, len(new.entropy), len(known.entropy))
    return value, chance + abs(by_sureness - by_mix) / 2


def by_confidence(accuracy: float, confidence: Tensor, known: Tensor) -> tuple[float, float]:
    """The same by the difference of mean confidences [N] and [M]."""
    lost = float(known.double().mean() - confidence.double().mean())
    value = min(1.0, max(0.0, accuracy - lost))
    return value, abs(lost) / 2 + _sampling(value, len(confidence), len(known))


def _by_sureness(of: Answers, least: float) -> Tensor:
    """The share of answers that are sure enough."""
    return ((least - of.entropy.double()) / (_STEP * least + 1e-3)).sigmoid().mean()


def _by_mix(of: Answers, mix: Tensor) -> Tensor:
    """Mean confidence, if of each class only the surest answers count, to its share in ``mix``."""
    order = of.confidence.argsort(descending=True, stable=True)
    confidence, classes = of.confidence[order].double(), of.classes[order].double()
    before = classes.cumsum(0) - classes  # surer answers of each class
    counted = (mix * len(order) - before).clamp(0, 1) * classes
    return (counted.sum(1) * confidence).mean()


def _mix(of: Answers) -> Tensor:
    """The share of each class, [C]."""
    return of.classes.double().mean(0)


def _sampling(share: float, examples: int, known: int) -> float:
    """What chance adds to a share of so many examples, by a threshold of so many."""
    return _SURE * sqrt(max(share * (1 - share), 0.01) * (1 / examples + 1 / known))
