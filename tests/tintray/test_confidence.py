"""Filters and their thresholds, and what is measured of a model's confidence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tintray.tasks.calibration import (
    BINS,
    brier_score,
    calibration,
    expected_calibration_error,
    fit_temperature,
)
from tintray.tasks.confidence import (
    ConfidenceFilter,
    isotonic,
    labelled_threshold,
    top_p_threshold,
)
from tintray.tasks.registry import find_kind

RANDOM = torch.Generator().manual_seed(0)
CLASSES = 4


def model(examples: int, right: Tensor, sure: Tensor, labels: Tensor) -> Tensor:
    """Logits whose largest probability is ``sure`` and whose class is right where told."""
    predicted = torch.where(right, labels, (labels + 1) % CLASSES)
    rest = ((1 - sure) / (CLASSES - 1))[:, None].expand(examples, CLASSES)
    return rest.scatter(1, predicted[:, None], sure[:, None]).log()


def calibrated(examples: int = 4000) -> tuple[Tensor, Tensor]:
    """Logits that are right as often as they are sure, and labels."""
    labels = torch.randint(CLASSES, (examples,), generator=RANDOM)
    sure = 0.3 + 0.69 * torch.rand(examples, generator=RANDOM)
    right = torch.rand(examples, generator=RANDOM) < sure
    return model(examples, right, sure, labels), labels


def test_top_p_keeps_the_surest_share() -> None:
    logits, _ = calibrated(1000)
    for share in (0.1, 0.5, 1.0):
        judge = ConfidenceFilter("top_p", top_p_threshold(logits, share))
        assert judge.weights(logits, logits).mean().item() == pytest.approx(share, abs=2e-3)
    with pytest.raises(ValueError, match="share in"):
        top_p_threshold(logits, 0.0)


def test_weights_grow_with_the_experts_confidence_and_nothing_is_cut() -> None:
    logits, _ = calibrated(100)
    weights = ConfidenceFilter("weight").weights(logits, logits)
    order = logits.softmax(-1).amax(-1).argsort()
    assert (weights[order].diff() >= 0).all()
    assert weights.min() > 0
    even = torch.zeros(1, CLASSES)
    assert ConfidenceFilter("weight").weights(even, even).item() == pytest.approx(0.0, abs=1e-6)


def test_a_threshold_from_labels_is_where_self_labels_become_right_as_often_as_asked() -> None:
    logits, labels = calibrated()
    found = labelled_threshold(logits, labels, target=0.8)
    assert found == pytest.approx(0.8, abs=0.05)
    assert labelled_threshold(logits, logits.argmax(-1), target=0.99) == 0.0
    assert labelled_threshold(logits, (labels + 2) % CLASSES, target=0.9) > 1


def test_a_threshold_that_sets_itself_drops_what_the_merge_keeps_contradicting() -> None:
    """Labels that are noise below a confidence of 0.6 and right above it."""
    labels = torch.randint(CLASSES, (600,), generator=RANDOM)
    sure = 0.3 + 0.69 * torch.rand(600, generator=RANDOM)
    chance = torch.rand(600, generator=RANDOM) < 1 / CLASSES
    expert = model(600, torch.where(sure > 0.6, True, chance), sure, labels)
    merged = model(600, torch.ones(600, dtype=torch.bool), torch.full((600,), 0.9), labels)
    judge = ConfidenceFilter("threshold", None)
    assert judge.weights(merged, expert).all(), "nothing is known yet, so nothing is dropped"
    for rows in torch.arange(600).split(50):
        judge.observe(merged[rows], expert[rows])
    assert judge.current_threshold == pytest.approx(0.6, abs=0.05)
    other = ConfidenceFilter("threshold", None)
    other.restore(judge.state())
    assert other.current_threshold == judge.current_threshold


def test_no_single_batch_of_pixels_fills_what_a_threshold_looks_back_on() -> None:
    judge = ConfidenceFilter("threshold", None)
    sure = torch.tensor([[9.0, 0.0]])
    judge.observe(sure.expand(64, -1), sure.expand(64, -1))
    before = judge.state()
    judge.observe(sure.flip(1).expand(4096, -1), sure.expand(4096, -1))
    assert (~judge.state()[:, 0].isnan()).sum() == 128
    assert torch.equal(judge.state()[-128:-64], before[-64:])


def test_padding_is_not_what_a_threshold_learns_from() -> None:
    judge = ConfidenceFilter("threshold", None)
    expert = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(4, 6)
    mask[:, :2] = 1
    settings: Any = {"confidence_filter": judge, "labels": "soft", "temperature": 1.0}
    find_kind("token_classification").compare(expert, expert, mask, **settings)
    assert (~judge.state()[:, 0].isnan()).sum() == 8


def test_isotonic_is_the_nearest_rising_sequence() -> None:
    found = isotonic(torch.tensor([1.0, 3.0, 2.0, 4.0, 0.0]))
    assert found.tolist() == [1.0, 2.25, 2.25, 2.25, 2.25]
    rising = torch.tensor([1.0, 2.0, 5.0])
    assert isotonic(rising).tolist() == rising.tolist()


def test_confidence_that_means_what_it_says_has_no_error() -> None:
    logits, labels = calibrated(20000)
    assert expected_calibration_error(logits, labels) < 0.02
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_temperature_scaling_undoes_what_scaled_the_logits(factor: float) -> None:
    logits, labels = calibrated(20000)
    found = fit_temperature(factor * logits, labels)
    assert found == pytest.approx(factor, rel=0.06)
    before = expected_calibration_error(factor * logits, labels)
    assert expected_calibration_error(factor * logits / found, labels) < before / 3


def test_known_values() -> None:
    sure = torch.tensor([[100.0, 0.0], [100.0, 0.0]])
    labels = torch.tensor([0, 1])
    assert expected_calibration_error(sure, labels) == pytest.approx(0.5)
    assert brier_score(sure, labels) == pytest.approx(1.0)
    found = calibration(sure, None)
    assert found.histogram == [*[0.0] * (BINS - 1), 1.0]
    assert found.ece is found.brier is None
    assert sum(calibration(calibrated()[0], None).histogram) == pytest.approx(1.0)
