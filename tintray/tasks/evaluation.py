"""What a merge keeps of its experts: metrics, agreement, normalised accuracy."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from tintray.errors import FitError
from tintray.tasks.calibration import calibration
from tintray.tasks.classes import ClassKind
from tintray.tasks.kind import Kind
from tintray.tasks.metrics import averaged, find_metric
from tintray.tasks.outputs import Mask, Outputs, cut_alike


@dataclass(frozen=True)
class TaskScore:
    """One task, measured on one set of examples."""

    task: str
    # ``"accuracy"`` where there are labels; ``"agreement"`` with the expert where there are none
    metric: str
    # the metric of merge and expert on the same examples; the expert's agreement is 1
    merged: float
    expert: float
    agreement: float  # share of answers on which both predict the same
    examples: int
    # of ``merged`` and ``expert``, as ``calibration.Calibration`` has it; None for kinds of task
    # without classes, and in merges of earlier versions
    calibration: Mapping[str, Mapping[str, Any]] | None = None
    # every metric of the kind of task, by name: that of the merge, that of the expert
    details: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def normalised(self) -> float | None:
        """Merged metric over expert metric, or the inverse where less is better; None if none."""
        return find_metric(self.metric).normalised(self.merged, self.expert)


def score(
    task: str, kind: Kind, merged: Outputs, expert: Outputs, labels: Any, mask: Mask = None
) -> TaskScore:
    """Compare outputs of merge and expert on N examples, with labels where there are any.

    ``mask`` [N, S] tells which tokens count, where an example has many.
    """
    if isinstance(merged, Tensor) and isinstance(expert, Tensor):
        merged, expert = cut_alike(merged, expert)
    agreed = kind.mean_agreement(merged, expert, mask)
    if labels is None:
        return TaskScore(task, "agreement", agreed, 1.0, agreed, len(merged))
    ours, theirs = (kind.measure(outputs, labels, mask) for outputs in (merged, expert))
    details = {name: (ours[name], theirs[name]) for name in ours}
    name = next(iter(ours))
    return TaskScore(task, name, *details[name], agreed, len(merged), details=details)


def calibrated_score(
    task: str, kind: Kind, merged: Outputs, expert: Outputs, labels: Any, mask: Mask = None
) -> TaskScore:
    """The same, with how sure both are of their classes; rightly or not, where there are labels."""
    plain = score(task, kind, merged, expert, labels, mask)
    if not isinstance(kind, ClassKind):
        return plain
    assert isinstance(merged, Tensor) and isinstance(expert, Tensor), "of classifiers"
    sides = zip(("merged", "expert"), cut_alike(merged, expert), strict=True)
    sure = {side: asdict(calibration(*kind.rows(of, labels, mask))) for side, of in sides}
    return replace(plain, calibration=sure)


@dataclass(frozen=True)
class Overall:
    """Means over the tasks of a merge: every task counts alike."""

    metrics: Sequence[str]  # the metrics' names, each once
    # None where the tasks' metrics cannot be averaged, see ``metrics.averaged``
    average: float | None
    expert_average: float | None
    # over tasks whose experts are better than chance; None if there is none
    normalised_accuracy: float | None
    agreement: float


def check_finite(scores: Iterable[TaskScore]) -> None:
    """Raise FitError for figures that are no numbers: the answers they come of are not finite."""
    for score in scores:
        for side, figure in (("merge", score.merged), ("expert", score.expert)):
            if not math.isfinite(figure):
                raise FitError(
                    f"task '{score.task}': the {score.metric} of the {side} is {figure}, so its "
                    "answers are not finite; nothing was published, use lower learning rates, a "
                    "smaller scale, or another method"
                )


def overall(scores: Sequence[TaskScore], at_chance: Collection[str] = ()) -> Overall:
    """Means over tasks; ``at_chance`` are those whose experts seem to guess.

    To keep all of such an expert says nothing of a merge, so it is left out of the normalised
    accuracy.
    """
    names = [score.metric for score in scores]
    alike = averaged(names)
    shares = [score.normalised for score in scores if score.task not in at_chance]
    known = [share for share in shares if share is not None]
    return Overall(
        metrics=sorted(set(names)),
        average=mean([score.merged for score in scores]) if alike else None,
        expert_average=mean([score.expert for score in scores]) if alike else None,
        normalised_accuracy=mean(known) if known else None,
        agreement=mean([score.agreement for score in scores]),
    )


def mean(values: Sequence[float]) -> float:
    """Plain mean over tasks: every task counts alike, whatever its number of examples."""
    return sum(values) / len(values)
