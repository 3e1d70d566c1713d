"""What a task's filter and metrics are, against their definitions."""

from __future__ import annotations

import pytest
import torch

from tintray.tasks.classes import CLASSIFICATION
from tintray.tasks.confidence import ConfidenceFilter
from tintray.tasks.evaluation import TaskScore, overall, score


@pytest.mark.parametrize(
    ("merged", "expert", "kept"),
    [
        ([3.0, 0.0], [1.0, 0.0], True),  # they agree, however sure the merge is
        ([0.5, 0.0], [0.0, 3.0], True),  # they differ, the expert is surer
        ([3.0, 0.0], [0.0, 1.0], False),  # they differ, the merge is surer
        ([1.0, 0.0], [0.0, 1.0], True),  # they differ and are equally sure
    ],
)
def test_agreement_filter(merged: list[float], expert: list[float], kept: bool) -> None:
    one, other = torch.tensor([merged]), torch.tensor([expert])
    assert ConfidenceFilter("agreement").weights(one, other).tolist() == [float(kept)]
    assert ConfidenceFilter("none").weights(one, other).tolist() == [1.0]


def test_score_with_and_without_labels() -> None:
    merged, expert = torch.eye(4), torch.eye(4)[[0, 1, 3, 3]]
    labelled = score("t", CLASSIFICATION, merged, expert, torch.tensor([0, 1, 2, 0]))
    details = {"accuracy": (0.75, 0.5)}
    assert labelled == TaskScore("t", "accuracy", 0.75, 0.5, 0.75, 4, details=details)
    assert labelled.normalised == 1.5
    unlabelled = score("t", CLASSIFICATION, merged, expert, None)
    assert unlabelled == TaskScore("t", "agreement", 0.75, 1.0, 0.75, 4)
    assert overall([labelled, unlabelled]).normalised_accuracy == pytest.approx((1.5 + 0.75) / 2)
