"""Which task an example is of, how sure that is, and whether it is of any.

Each task has a Gaussian density over the features of its pool (quadratic discriminant analysis,
with the covariance shrunk towards its diagonal as in regularised discriminant analysis, Friedman
1989; the Mahalanobis distance to a task tells the foreign, Lee et al. 2018, arXiv 1807.03888).
Nothing is trained: what is calibrated is calibrated on examples of the pools that no density was
fitted to. Once the likeliest task has answered, how surely it did is counted too (Hendrycks and
Gimpel, arXiv 1610.02136, the entropy in place of the largest probability).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tintray.errors import InputError
from tintray.routing.statistics import TaskStatistics

FALSE_REJECTION = 0.005
"""The share of the tasks' own examples that is taken for foreign."""
SHARED = 0.2
"""Two tasks share their inputs if so large a share of either's examples goes to the other."""
UNKNOWN = "unknown"

_SHRINK, _FLOOR = 0.02, 1e-4  # chosen on examples held back from pools, docs/routing.md
_DENSE = 0.5  # how much a dense place counts beside a near one; chosen on tasks left out of pools
_PARTS = 64  # of the normal distribution, as which a sure answer counts beside familiar inputs
_AT_ONCE = 2**24  # numbers of examples, less their means, of several tasks
_CALIBRATING = 4096  # examples of all tasks together
_SPREAD = 1.4826  # times the median deviation is the standard deviation of a normal distribution


@dataclass(frozen=True)
class Route:
    """Where an example belongs.

    ``task`` is None if it is foreign to all tasks. ``confidence`` is the probability of the first
    of ``nearest``, given that it is of one of the tasks. ``familiarity`` is the share of the tasks'
    own examples that look less familiar than it does; ``score`` is the same in standard deviations,
    comparable within a router.
    """

    task: str | None
    confidence: float
    familiarity: float
    nearest: tuple[tuple[str, float], ...]  # tasks with their probability, the likeliest first
    score: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "task": UNKNOWN if self.task is None else self.task,
            "confidence": round(self.confidence, 6),
            "familiarity": round(self.familiarity, 6),
            "nearest": [{"task": name, "confidence": round(p, 6)} for name, p in self.nearest],
        }


class _Densities:
    """log N(x; mean, covariance) of every task, with covariances of a diagonal and few directions.

    Tensors are stacked over tasks, so that none is asked on its own.
    """

    def __init__(self, known: Sequence[TaskStatistics]) -> None:
        shared = torch.stack([of_task.variance for of_task in known]).mean(0)
        each = [_scaled(of_task, shared) for of_task in known]
        self._scale = torch.stack([diagonal.rsqrt() for diagonal, _ in each])[:, None]
        self._mean = torch.stack([of_task.mean for of_task in known])[:, None] * self._scale
        lefts, volumes = [], []
        for diagonal, directions in each:
            left, strength, _ = torch.linalg.svd(directions, full_matrices=False)
            square = strength.square()
            # (I + U S² Uᵀ)⁻¹ = I − U S² / (1 + S²) Uᵀ, by Woodbury
            lefts.append((left * (square / (1 + square)).sqrt()).T)
            volumes.append(diagonal.log().sum() + (1 + square).log().sum())
        self._left = pad_sequence(lefts, batch_first=True).mT  # pools of few examples have fewer
        self._volume = torch.stack(volumes)

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Squared Mahalanobis distances and log densities [N, K] of features [N, D].

        Densities are up to a constant that all tasks share. The products are computed where the
        features are; what comes of them is in memory.
        """
        found, device = [], features.device
        some = max(1, _AT_ONCE // features.numel())
        for first in range(0, len(self._mean), some):
            tasks = slice(first, first + some)
            scale, mean, left = (
                of[tasks].to(device) for of in (self._scale, self._mean, self._left)
            )
            centred = features * scale - mean
            within = (centred @ left).square().sum(2)
            found.append((centred.square().sum(2) - within).cpu())
        distances = torch.cat(found).T
        return distances, -0.5 * (distances + self._volume)


def _scaled(known: TaskStatistics, shared: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of a task's covariance [D], and its directions [D, r] in units of that."""
    count, directions = int(known.count), known.directions.shape[1]
    shrink = _SHRINK + (1 - _SHRINK) * directions / (directions + count)
    rest = (known.variance - known.directions.square().sum(1)).clamp_min(0)
    diagonal = (1 - shrink) * rest + shrink * shared + _FLOOR
    return diagonal, (1 - shrink) ** 0.5 * known.directions / diagonal.sqrt()[:, None]


class Router:
    """Routes features to tasks.

    Parameters
    ----------
    tasks
        What is kept of each task, by name, in the order of the merge.
    false_rejection
        The share of the tasks' own examples that is taken for foreign.

    Raises
    ------
    InputError
        If tasks have features of different sizes, so that nothing can be compared.
    """

    def __init__(
        self, tasks: Mapping[str, TaskStatistics], false_rejection: float = FALSE_REJECTION
    ) -> None:
        self.tasks = tuple(tasks)
        known = list(tasks.values())
        sizes = {len(of_task.mean) for of_task in known}
        if len(sizes) != 1:
            raise InputError(
                "expected features of one size of all tasks, found "
                f"{', '.join(map(str, sorted(sizes))) or 'no task'}; tasks whose inputs have "
                "different forms cannot be told apart"
            )
        self._compare = _Densities(known)
        each = max(2, _CALIBRATING // len(known))
        self._held = [of_task.examples[:each] for of_task in known]
        self._calibrate(false_rejection)

    @classmethod
    def fit(cls, features: Mapping[str, Tensor], false_rejection: float = FALSE_REJECTION) -> Self:
        """A router of pools' features [N, D] by task."""
        return cls({n: TaskStatistics.of(x) for n, x in features.items()}, false_rejection)

    def _calibrate(self, false_rejection: float) -> None:
        found = [self._compare(held) for held in self._held]
        truth = torch.arange(len(found)).repeat_interleave(torch.tensor([*map(len, self._held)]))
        own = [distance[:, k].log() for k, (distance, _) in enumerate(found)]
        self._typical = torch.stack([logs.median() for logs in own])
        self._deviation = torch.stack([_deviation(logs) for logs in own])
        densities = torch.cat([density for _, density in found])
        best = densities.amax(1)
        self._level, self._level_deviation = best.median(), _deviation(best)
        self._temperature = _temperature(densities, truth)
        distances = torch.cat([distance for distance, _ in found])
        self._known = self._familiar(distances, densities).sort().values
        self._threshold = float(self._known.quantile(false_rejection))
        normal, parts = NormalDist(), range(_PARTS)
        steps = torch.tensor([normal.inv_cdf((part + 0.5) / _PARTS) for part in parts])
        answered = (self._known[:, None] + steps).flatten().sort().values
        self._threshold_answered = float(answered.quantile(false_rejection))
        self._known_answered: list[float] = answered.tolist()
        taken, count = densities.argmax(1), len(self.tasks)
        self._confusion = torch.zeros(count, count).index_put_(
            (truth, taken), torch.ones(len(truth)), accumulate=True
        )

    def _familiar(self, distances: Tensor, densities: Tensor) -> Tensor:
        """How familiar examples look [N], in standard deviations: near to their task, and dense.

        Distance alone would take anything for an example of a task whose images are manifold;
        density alone would take plain images for one of a task whose images are plain.
        """
        best, task = densities.max(1)
        own = distances.gather(1, task[:, None])[:, 0].log()
        near = (self._typical[task] - own) / self._deviation[task]
        return near + _DENSE * (best - self._level) / self._level_deviation

    def route(self, features: Tensor, nearest: int = 3) -> list[Route]:
        """Where each of N examples belongs, by its features [N, D].

        Raises InputError if they are not of the size that the tasks' are.
        """
        width = self._held[0].shape[1]
        if features.ndim != 2 or features.shape[1] != width:
            raise InputError(
                f"expected features [N, {width}], as those of the tasks, found "
                f"{list(features.shape)}; are these inputs of the form that the tasks take?"
            )
        distances, densities = self._compare(features)
        familiar = self._familiar(distances, densities)
        below = torch.searchsorted(self._known, familiar) / len(self._known)
        chances = (densities / self._temperature).softmax(1)
        top = chances.topk(min(nearest, len(self.tasks)), dim=1)
        rows = zip(*(t.tolist() for t in (*top, below, familiar)), strict=True)
        routes = []
        for shares, places, share, score in rows:
            named = tuple((self.tasks[k], p) for k, p in zip(places, shares, strict=True))
            task = named[0][0] if score >= self._threshold else None
            routes.append(Route(task, named[0][1], share, named, score))
        return routes

    def judge(self, route: Route, surer: float) -> Route:
        """The same route, once its likeliest task has answered.

        ``surer`` is the share of that task's own examples of which it was less sure, in (0, 1). It
        counts as its place in a normal distribution, as familiar inputs do: the two say different
        things, so that both together tell more of the foreign.
        """
        score = route.score + NormalDist().inv_cdf(surer)
        task = route.nearest[0][0] if score >= self._threshold_answered else None
        share = bisect_left(self._known_answered, score) / len(self._known_answered)
        return replace(route, task=task, familiarity=share, score=score)

    @cached_property
    def shared(self) -> Sequence[tuple[str, str, float]]:
        """Pairs of tasks that share their inputs, with the share of examples that change places."""
        shares = self._confusion / self._confusion.sum(1, keepdim=True)
        both = torch.maximum(shares, shares.T).tolist()
        count = len(self.tasks)
        return [
            (self.tasks[i], self.tasks[j], both[i][j])
            for i in range(count)
            for j in range(i + 1, count)
            if both[i][j] >= SHARED
        ]


def _deviation(values: Tensor) -> Tensor:
    """The standard deviation as the median deviation tells it, which no outlier moves."""
    return (_SPREAD * (values - values.median()).abs().median()).clamp_min(1e-6)


def _temperature(densities: Tensor, truth: Tensor) -> float:
    """What log densities are divided by so that their softmax is as sure as it is right."""
    grid: list[float] = torch.logspace(-1, 4, 101).tolist()
    losses = [torch.nn.functional.cross_entropy(densities / t, truth).item() for t in grid]
    return grid[min(range(len(grid)), key=losses.__getitem__)]


def auroc(own: Tensor, foreign: Tensor) -> float:
    """How often an example of its own [N] looks more familiar than a foreign one [M]; ties half."""
    ordered = foreign.sort().values
    below = torch.searchsorted(ordered, own)
    not_above = torch.searchsorted(ordered, own, right=True)
    return float((below + not_above).double().mean() / 2 / len(foreign))
