"""How many answers to new examples are right, estimated without a label.

Three things tell how far accuracy fell, and see different failures. By *sureness*: an answer counts
as right if its entropy is below a threshold, which is set so that it tells the known accuracy on
the known examples (average thresholded confidence; Garg et al., arXiv 2201.04234); here it is a
smooth step, which chance moves less. By *mix*: a model that calls everything the same is sure of
it, so that answers count as far as they are sure, but of each class no more of them, the surest,
than its known share (confidence optimal transport; Lu et al., arXiv 2305.15640, for answers that
say nothing of other classes). By *shift*: how far the mean of the features has moved.

Each overstates a fall on one task and understates it on the next. What they count is learned where
the true fall is nearly known: on known examples that are disturbed on purpose, from how many
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

UNTRIED = torch.tensor([[0.75, 0.75, 0.0], [0.75, 0.75, 0.0]], dtype=torch.float64)
"""What falls by sureness, mix and shift count where nothing could be tried: where features of new
examples are known, and where they are not.
"""

_SURE = 1.96  # standard errors on either side that hold 95 %
_STEP = 0.6  # width of the smooth step, as a share of the threshold
_DRAWS = 20  # samples of the known examples, for what chance does to a mix
_SHIFTED = 4.0  # standard deviations of the features that count as a fall of everything
_PRIOR = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)  # towards which weights are learned
_RIDGE = 1 / 3  # how much that counts, in squared falls


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
    features: Tensor | None = None  # [N, D], where they are known

    def at(self, rows: Tensor) -> Self:
        """Those to some examples."""
        features = None if self.features is None else self.features[rows]
        return type(self)(self.confidence[rows], self.entropy[rows], self.classes[rows], features)


def known_share(score: TaskScore) -> tuple[str, float]:
    """The share of answers that a task is known to have right; else that as the expert's."""
    if score.metric in ("accuracy", "token_accuracy"):
        return score.metric, score.merged
    return "agreement", score.agreement


def threshold(entropy: Tensor, accuracy: float) -> float:
    """The entropy that a share ``accuracy`` of the known examples [N] does not exceed."""
    return float(entropy.double().quantile(min(1.0, max(0.0, accuracy))))


def falls(known: Answers, new: Answers, least: float) -> Tensor:
    """How far accuracy fell from the known to the new examples by sureness, mix and shift, [3].

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
    by_mix = torch.stack(usual).mean() - _by_mix(new, _mix(known))
    return torch.stack([by_sureness, by_mix, _by_shift(known, new)])


def learned(
    known: Answers, same: Answers, disturbed: Sequence[Answers], least: float, accuracy: float
) -> Tensor:
    """Weights [2, 3] under which the falls on examples that were ``disturbed`` are the true ones.

    The first are those where features are known, the second those where they are not. ``same`` are
    the answers to these examples as they are. An answer that stays is taken to be right as often as
    the known ones, one that changes to be any other: that is the true fall, but for examples that
    are right both times by chance. By ridge regression.
    """
    mix = _mix(known)
    others = max(int((mix > 0).sum()) - 1, 1)

    def told(of: Answers) -> Tensor:
        return torch.stack([_by_sureness(of, least), _by_mix(of, mix), -_by_shift(known, of)])

    stay = torch.stack([(of.classes * same.classes).sum(1).double().mean() for of in disturbed])
    fell = accuracy - (accuracy * stay + (1 - accuracy) * (1 - stay) / others)
    seen = torch.stack([told(same) - told(of) for of in disturbed])
    ridge = _RIDGE * torch.eye(3, dtype=torch.float64)

    def solved(seen: Tensor) -> Tensor:
        found: Tensor = torch.linalg.solve(seen.T @ seen + ridge, seen.T @ fell + ridge @ _PRIOR)
        return found

    return torch.stack([solved(seen), solved(seen * torch.tensor([1.0, 1.0, 0.0]))])


def by_falls(
    accuracy: float, weights: Tensor, known: Answers, new: Answers, least: float
) -> tuple[float, float]:
    """The share of right answers among new examples, and its error on either side.

    The error is that of two samples, and half of what sureness and mix differ by.
    """
    fell = falls(known, new, least)
    row = 0 if known.features is not None and new.features is not None else 1
    value = min(1.0, max(0.0, accuracy - float(weights[row] @ fell)))
    chance = _sampling(value, len(new.entropy), len(known.entropy))
    return value, chance + abs(float(fell[0] - fell[1])) / 2


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


def _by_shift(known: Answers, new: Answers) -> Tensor:
    """How far the mean of the features moved, beyond chance; 0 where they are not known."""
    if known.features is None or new.features is None:
        return torch.zeros((), dtype=torch.float64)
    before, after = known.features.double(), new.features.double()
    moved = (after.mean(0) - before.mean(0)) / before.std(0).clamp_min(1e-6)
    chance = 1 / len(before) + 1 / len(after)
    return (moved.square().mean() - chance).clamp_min(0).sqrt() / _SHIFTED


def _mix(of: Answers) -> Tensor:
    """The share of each class, [C]."""
    return of.classes.double().mean(0)


def _sampling(share: float, examples: int, known: int) -> float:
    """What chance adds to a share of so many examples, by a threshold of so many."""
    return _SURE * sqrt(max(share * (1 - share), 0.01) * (1 / examples + 1 / known))
