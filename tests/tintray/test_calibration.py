"""What is reported about confidence, for every kind of task that chooses among classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tintray.tasks.calibration import BINS, calibration
from tintray.tasks.evaluation import calibrated_score
from tintray.tasks.registry import find_kind

CLASSES = 4


def confidences(kind: Any, *given: Any) -> Any:
    """What is published of how sure merge and expert are."""
    return calibrated_score("t", find_kind(kind), *given).calibration


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_counted_where_the_mask_and_the_labels_say_so() -> None:
    merged, expert = logits(2, 5, CLASSES), logits(2, 5, CLASSES, seed=1)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]])
    words = [torch.tensor([2, 0, 1]), torch.tensor([3])]
    found = confidences("token_classification", merged, expert, words, mask)
    assert found is not None
    rows = torch.cat([merged[0, 1:4], merged[1, 1:2]])
    expected = calibration(rows, torch.tensor([2, 0, 1, 3]))
    assert found["merged"]["ece"] == pytest.approx(expected.ece)
    assert found["merged"]["brier"] == pytest.approx(expected.brier)
    unlabelled = confidences("token_classification", merged, expert, None, mask)
    assert unlabelled is not None
    assert unlabelled["merged"]["histogram"] == pytest.approx(expected.histogram)
    assert unlabelled["merged"]["ece"] is None


def test_pixels_are_counted_but_the_ignored_ones() -> None:
    merged, expert = logits(2, CLASSES, 3, 3), logits(2, CLASSES, 3, 3, seed=1)
    labels = expert.argmax(1)
    labels[:, 0] = -100
    found = confidences("segmentation", merged, expert, labels)
    assert found is not None
    rows = expert.movedim(1, -1)[:, 1:].reshape(-1, CLASSES)
    assert found["expert"]["ece"] == pytest.approx(calibration(rows, rows.argmax(-1)).ece)
    assert len(found["merged"]["histogram"]) == BINS


def test_maps_are_enlarged_to_their_labels() -> None:
    merged = logits(1, CLASSES, 2, 2)
    found = confidences("segmentation", merged, merged, torch.zeros(1, 8, 8, dtype=torch.int64))
    assert found is not None
    assert sum(found["merged"]["histogram"]) == pytest.approx(1.0)


def test_each_yes_and_no_is_counted() -> None:
    merged, labels = logits(6, 3), (logits(6, 3, seed=1) > 0).float()
    found = confidences("multi_label", merged, merged, labels)
    assert found is not None
    yes = merged.sigmoid()
    assert found["merged"]["brier"] == pytest.approx(float(2 * (yes - labels).square().mean()))
    assert found["merged"]["mean_confidence"] == pytest.approx(
        float(torch.maximum(yes, 1 - yes).mean())
    )


@pytest.mark.parametrize("kind", ["regression", "depth", "normals"])
def test_values_have_no_confidence(kind: Any) -> None:
    assert confidences(kind, logits(3, 2), logits(3, 2), None) is None
