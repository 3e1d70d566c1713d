"""What is kept of the examples that a merge was measured on, so that new ones can be compared."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tintray.errors import IntegrityError
from tintray.numerics.randomness import stream
from tintray.pools.pool import Pool
from tintray.references.disturbing import DISTURBANCES, are_images, disturbed
from tintray.references.estimates import (
    UNTRIED,
    Answers,
    Estimate,
    by_confidence,
    by_falls,
    known_share,
    learned,
    threshold,
)
from tintray.references.observing import Observed
from tintray.references.two_samples import Difference, compare
from tintray.tasks.classes import CLASSIFICATION
from tintray.tasks.evaluation import TaskScore
from tintray.tasks.kind import Kind

FORM = "observed-1"
"""What is kept; another number stands for something else, which cannot be compared."""

MOST = 512
"""Examples that are kept, or compared."""
LEAST = 16
"""Examples without which nothing can be said."""
TRIED = 50
"""Examples that are disturbed, to learn what a fall of sureness means."""

_COLUMNS = 31  # the most frequent answers; all others are one more
_NUMBERS, _KNOWN, _THRESHOLD = "number.", "known.", "threshold."
_WEIGHTS = "weights"

Answer = Callable[[Iterable[Pool]], Iterable[Observed]]
"""Notes what a task's model answers to the examples of several pools."""


@dataclass(frozen=True)
class Reference:
    """What was noted of M examples when a merge was made.

    ``numbers`` [M], by name, and ``features`` [M, FEATURES] as in ``Observed``; ``columns`` are the
    most frequent answers, int64 [C], and ``shares`` [M, C + 1] of each example's answers; the last
    are all others. ``known`` is the share of right answers that was known, by its name; None for
    values. ``threshold`` and ``weights`` are those of ``estimates``, where an example has one
    answer.
    """

    numbers: Mapping[str, Tensor]
    columns: Tensor | None
    shares: Tensor | None
    features: Tensor | None
    known: tuple[str, float] | None
    threshold: float | None
    weights: Tensor = UNTRIED

    @classmethod
    def of(
        cls,
        observed: Observed,
        score: TaskScore,
        pool: Pool | None = None,
        answer: Answer | None = None,
    ) -> Self | None:
        """What is kept of examples for which a task has this score; None of too few.

        With these examples, and what answers them, weights of estimates are learned on some.
        """
        if len(observed) < LEAST:
            return None
        kept = observed[some(len(observed))]
        features = None if kept.features is None else kept.features.half().float()  # as it is kept
        if kept.classes is None:
            return cls(kept.numbers, None, None, features, None, None)
        columns, known = _frequent(kept.classes), known_share(score)
        single = kept.classes.shape[1] == 1
        least = threshold(observed.numbers["entropy"], known[1]) if single else None
        parts = (shares(kept.classes, columns).half().float(), features)
        made = cls(kept.numbers, columns, *parts, known, least)
        return made if pool is None or answer is None else made._tried(pool, observed, answer)

    def _tried(self, pool: Pool, observed: Observed, answer: Answer) -> Self:
        """The same with weights that are learned on some of the examples."""
        rows = some(len(observed))
        rows = rows[torch.linspace(0, len(rows) - 1, min(TRIED, len(rows))).long()]
        known, same = self._known, self._answers_of(observed[rows])
        if known is None or same is None or self.threshold is None or self.known is None:
            return self
        found = [self._answers_of(of) for of in answer(disturbed(pool[rows]))]
        tried = [of for of in found if of is not None]
        if not tried:
            return self
        weights = learned(known, same, tried, self.threshold, self.known[1])
        return replace(self, weights=weights)

    def __len__(self) -> int:
        return len(next(iter(self.numbers.values())))

    def compare(self, new: Observed) -> list[Difference]:
        """How new examples differ, as far as both are known; of many, by some."""
        chosen = new[some(len(new))]
        known = dict(sorted(self.numbers.items()))  # in one order, whether just noted or read
        found = dict(chosen.numbers)
        if (of_new := self._shares(chosen)) is not None and self.shares is not None:
            known["classes"], found["classes"] = self.shares, of_new
        if self.features is not None and chosen.features is not None:
            known["features"], found["features"] = self.features, chosen.features
        return compare(known, found)

    def sureness(self) -> Callable[[float], float] | None:
        """Tells of an entropy of which share of the known examples the model was less sure.

        The share is in (0, 1), ties half. None for values, of which nobody knows how sure they are.
        """
        if "entropy" not in self.numbers:
            return None
        known: list[float] = self.numbers["entropy"].sort().values.tolist()
        count = len(known)

        def surer(entropy: float) -> float:
            as_sure = (bisect_left(known, entropy) + bisect_right(known, entropy)) / 2
            return (count - as_sure + 0.5) / (count + 1)

        return surer

    def estimate(self, new: Observed) -> Estimate | None:
        """How many answers to new examples are right; None for values."""
        known, found = self._known, self._answers_of(new)
        if self.known is None or known is None or found is None:
            return None
        if self.threshold is None:
            figures = by_confidence(self.known[1], found.confidence, known.confidence)
            return Estimate(*self.known, *figures, "difference of confidences")
        figures = by_falls(self.known[1], self.weights, known, found, self.threshold)
        return Estimate(*self.known, *figures, "sureness and mix of answers")

    @property
    def _known(self) -> Answers | None:
        return _answers(self.numbers, self.shares, self.features)

    def _answers_of(self, new: Observed) -> Answers | None:
        return _answers(new.numbers, self._shares(new), new.features)

    def _shares(self, new: Observed) -> Tensor | None:
        if self.columns is None or new.classes is None:
            return None
        return shares(new.classes, self.columns)

    def tensors(self) -> dict[str, Tensor]:
        """As tensors to keep."""
        kept = {f"{_NUMBERS}{name}": of.float() for name, of in self.numbers.items()}
        if self.columns is not None and self.shares is not None:
            kept |= {"columns": self.columns, "shares": self.shares.half()}
        if self.features is not None:
            kept["features"] = self.features.half()
        if self.known is not None:
            kept[f"{_KNOWN}{self.known[0]}"] = torch.tensor(self.known[1], dtype=torch.float64)
        if self.threshold is not None:
            kept[f"{_THRESHOLD}entropy"] = -torch.tensor(self.threshold, dtype=torch.float64)
            kept[_WEIGHTS] = self.weights
        return {f"{FORM}/{name}": tensor.contiguous() for name, tensor in kept.items()}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], where: str) -> Self:
        """What ``tensors`` gave; ``where`` is what messages call the file.

        Raises IntegrityError if they are no such reference.
        """
        start = f"{FORM}/"
        found = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        groups = {
            mark: {n.removeprefix(mark): t for n, t in found.items() if n.startswith(mark)}
            for mark in (_NUMBERS, _KNOWN, _THRESHOLD)
        }
        numbers = {name: tensor.float() for name, tensor in groups[_NUMBERS].items()}
        columns, shares_, features = (found.get(n) for n in ("columns", "shares", "features"))
        single = [*groups[_KNOWN].values(), *groups[_THRESHOLD].values()]
        weights = found.get(_WEIGHTS, UNTRIED)
        rows = {t.shape[:1] for t in (*numbers.values(), shares_, features) if t is not None}
        fits = (
            len(rows) == 1
            and all(t.ndim == 1 for t in numbers.values())
            and all(t.ndim == 2 for t in (shares_, features) if t is not None)
            and all(t.ndim == 0 for t in single)
            and (columns is None) == (shares_ is None) == (not groups[_KNOWN])
            and weights.shape == UNTRIED.shape
            and (not groups[_THRESHOLD] or "entropy" in groups[_THRESHOLD])
            and (columns is None or {"confidence", "entropy"} <= numbers.keys())
            and (columns is None or shares_ is None or shares_.shape[1:] == (len(columns) + 1,))
            and all(bool(t.isfinite().all()) for t in found.values())
        )
        if not fits or not numbers or len(next(iter(numbers.values()))) < LEAST:
            raise IntegrityError(
                f"{where} does not say what new examples are compared with: expected what "
                f"'{FORM}' keeps, found {', '.join(sorted(tensors)[:4]) or 'no tensor'}; publish "
                "the merge again"
            )
        parts = [None if of is None else of.float() for of in (shares_, features)]
        known = next(((name, float(of)) for name, of in groups[_KNOWN].items()), None)
        least = groups[_THRESHOLD].get("entropy")  # of the negative entropy, as it is kept
        limit = None if least is None else -float(least)
        return cls(numbers, columns, parts[0], parts[1], known, limit, weights.double())


def _answers(
    numbers: Mapping[str, Tensor], classes: Tensor | None, features: Tensor | None
) -> Answers | None:
    if classes is None:
        return None
    return Answers(numbers["confidence"], numbers["entropy"], classes, features)


def passes(pool: Pool, kind: Kind) -> int:
    """How many disturbed examples are answered to learn a reference's weights on a pool."""
    learns = kind == CLASSIFICATION and are_images(pool) and len(pool) >= LEAST
    return len(DISTURBANCES) * min(TRIED, len(pool)) if learns else 0


def some(total: int) -> Tensor:
    """Which of so many examples are looked at, in order, always the same ones."""
    order = torch.randperm(total, generator=stream(0, "drift", "examples"))
    return order[:MOST].sort().values


def _frequent(classes: Tensor) -> Tensor:
    """The most frequent classes, in order of their numbers."""
    counted = classes[classes >= 0].numpy()
    numbers, counts = np.unique(counted, return_counts=True)
    chosen = np.argsort(-counts, kind="stable")[:_COLUMNS]
    return torch.from_numpy(np.sort(numbers[chosen]))


def shares(classes: Tensor, columns: Tensor) -> Tensor:
    """[N, C + 1]: the share of each column in an example's answers [N, S]; last, of all others."""
    places = torch.searchsorted(columns, classes.contiguous()).clamp_max(len(columns) - 1)
    places = places.where(columns[places] == classes, torch.tensor(len(columns)))
    counts = torch.zeros(len(classes), len(columns) + 1)
    counts.scatter_add_(1, places, (classes >= 0).float())
    return counts / counts.sum(1, keepdim=True).clamp_min(1)
