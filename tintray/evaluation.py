"""What a merge keeps of its experts: metrics, agreement, normalised accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from tintray.calibration import calibration
from tintray.tasks import Kind, accuracy, agreement, metric_name


@dataclass(frozen=True)
class TaskScore:
    """One task, measured on one set of examples.

    Attributes
    ----------
    metric
        ``"accuracy"`` where there are labels; ``"agreement"`` with the expert where there are none.
    merged, expert
        The metric of merge and expert on the same examples; the expert's agreement is 1.
    agreement
        Share of examples on which both predict the same.
    calibration
        Of ``merged`` and ``expert``, as ``calibration.Calibration`` has it; None for kinds of task
        without classes, and in merges of earlier versions.
    """

    task: str
    metric: str
    merged: float
    expert: float
    agreement: float
    examples: int
    calibration: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def normalised(self) -> float:
        """Merged metric over expert metric."""
        return self.merged / self.expert if self.expert else 0.0


def score(
    task: str, kind: Kind, merged: Tensor, expert: Tensor, labels: Tensor | None
) -> TaskScore:
    """Compare logits of merge and expert, [N, C] each, with labels [N] where there are any."""
    agreed = agreement(merged, expert)
    if labels is None:
        return TaskScore(task, "agreement", agreed, 1.0, agreed, len(merged))
    return TaskScore(
        task,
        metric_name(kind),
        accuracy(merged, labels),
        accuracy(expert, labels),
        agreed,
        len(merged),
    )


def confidences(merged: Tensor, expert: Tensor, labels: Tensor | None) -> dict[str, dict[str, Any]]:
    """How sure merge and expert are, and whether rightly; logits [N, C] each, labels [N]."""
    return {
        "merged": asdict(calibration(merged, labels)),
        "expert": asdict(calibration(expert, labels)),
    }


def normalised_accuracy(scores: Sequence[TaskScore]) -> float:
    """Mean over tasks of merged metric / expert metric."""
    return sum(score.normalised for score in scores) / len(scores)


def mean(values: Sequence[float]) -> float:
    """Plain mean over tasks: every task counts alike, whatever its number of examples."""
    return sum(values) / len(values)
