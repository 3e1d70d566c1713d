"""Which self-labels count, what few true labels change of that, and what is told of confidence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tintray.tasks.calibration import BINS, calibration, fit_temperature
from tintray.tasks.confidence import (
    ConfidenceFilter,
    confidence,
    isotonic,
    labelled_threshold,
    top_p_threshold,
)
from tintray.tasks.evaluation import calibrated_score
from tintray.tasks.kind import LossConfig
from tintray.tasks.kinds import KindName
from tintray.tasks.outputs import top_tokens
from tintray.tasks.registry import find_kind
from tintray.tinting.pseudo_labels import (
    PseudoLabelConfig,
    TrueLabels,
    prepare_targets,
    with_true_labels,
)

RANDOM = torch.Generator().manual_seed(0)
CLASSES = 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(right: Tensor, sure: Tensor, labels: Tensor) -> Tensor:
    """Logits whose largest probability is ``sure`` and whose class is right where told."""
    predicted = torch.where(right, labels, (labels + 1) % CLASSES)
    rest = ((1 - sure) / (CLASSES - 1))[:, None].expand(len(labels), CLASSES)
    return rest.scatter(1, predicted[:, None], sure[:, None]).log()


def calibrated(examples: int = 4000) -> tuple[Tensor, Tensor]:
    """Logits that are right as often as they are sure, and labels."""
    labels = torch.randint(CLASSES, (examples,), generator=RANDOM)
    sure = 0.3 + 0.69 * torch.rand(examples, generator=RANDOM)
    return model(torch.rand(examples, generator=RANDOM) < sure, sure, labels), labels


# -- filters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("merged", "expert", "selected"),
    [
        ([3.0, 0.0], [1.0, 0.0], True),  # they agree, however sure the merge is
        ([0.5, 0.0], [0.0, 3.0], True),  # they differ, the expert is surer
        ([3.0, 0.0], [0.0, 1.0], False),  # they differ, the merge is surer
        ([1.0, 0.0], [0.0, 1.0], True),  # they differ and are equally sure
    ],
)
def test_agreement_filter(merged: list[float], expert: list[float], selected: bool) -> None:
    one, other = torch.tensor([merged]), torch.tensor([expert])
    assert ConfidenceFilter("agreement").weights(one, other).tolist() == [float(selected)]
    assert ConfidenceFilter("none").weights(one, other).tolist() == [1.0]


def test_top_p_selects_the_surest_share_and_weights_cut_nothing() -> None:
    logits, _ = calibrated(1000)
    for share in (0.1, 0.5, 1.0):
        chosen = ConfidenceFilter("top_p", top_p_threshold(logits, share))
        assert chosen.weights(logits, logits).mean().item() == pytest.approx(share, abs=2e-3)
    weights = ConfidenceFilter("weight").weights(logits, logits)
    order = logits.softmax(-1).amax(-1).argsort()
    assert (weights[order].diff() >= 0).all() and weights.min() > 0
    even = torch.zeros(1, CLASSES)
    assert ConfidenceFilter("weight").weights(even, even).item() == pytest.approx(0.0, abs=1e-6)


def test_a_threshold_from_labels_is_where_self_labels_become_right_as_often_as_asked() -> None:
    logits, labels = calibrated()
    assert labelled_threshold(logits, labels, target=0.8) == pytest.approx(0.8, abs=0.05)
    assert labelled_threshold(logits, logits.argmax(-1), target=0.99) == 0.0
    assert labelled_threshold(logits, (labels + 2) % CLASSES, target=0.9) > 1


def test_a_threshold_that_sets_itself_never_selects_more_than_labels_would() -> None:
    """The merge errs apart from its expert and more often; the expert is right as often as sure."""
    logits, labels = calibrated(512)
    right = torch.rand(512, generator=RANDOM) < 0.9 * logits.softmax(-1).amax(-1)
    merged = model(right, torch.full((512,), 0.9), labels)
    chosen = ConfidenceFilter("threshold", None, target_precision=0.7)
    for rows in torch.arange(512).split(64):
        chosen.observe(merged[rows], logits[rows])
    assert labelled_threshold(logits, labels, target=0.7) <= chosen.current_threshold < 0.95


def test_a_threshold_that_sets_itself_drops_what_the_merge_keeps_contradicting() -> None:
    """Labels that are noise below a confidence of 0.6 and right above it."""
    labels = torch.randint(CLASSES, (600,), generator=RANDOM)
    sure = 0.3 + 0.69 * torch.rand(600, generator=RANDOM)
    chance = torch.rand(600, generator=RANDOM) < 1 / CLASSES
    expert = model(torch.where(sure > 0.6, True, chance), sure, labels)
    merged = model(torch.ones(600, dtype=torch.bool), torch.full((600,), 0.9), labels)
    chosen = ConfidenceFilter("threshold", None)
    assert chosen.weights(merged, expert).all(), "nothing is known yet, so nothing is dropped"
    for rows in torch.arange(600).split(50):
        chosen.observe(merged[rows], expert[rows])
    assert chosen.current_threshold == pytest.approx(0.6, abs=0.05)
    other = ConfidenceFilter("threshold", None)
    other.restore(chosen.state())
    assert other.current_threshold == chosen.current_threshold


def test_a_threshold_looks_back_on_some_of_many_pixels_and_on_no_padding() -> None:
    chosen, sure = ConfidenceFilter("threshold", None), torch.tensor([[9.0, 0.0]])
    chosen.observe(sure.expand(64, -1), sure.expand(64, -1))
    before = chosen.state()
    chosen.observe(sure.flip(1).expand(4096, -1), sure.expand(4096, -1))
    assert (~chosen.state()[:, 0].isnan()).sum() == 128
    assert torch.equal(chosen.state()[-128:-64], before[-64:])
    chosen, expert, mask = ConfidenceFilter("threshold", None), random(4, 6, 3), torch.zeros(4, 6)
    mask[:, :2] = 1
    find_kind("token_classification").compare(expert, expert, mask, chosen, LossConfig())
    assert (~chosen.state()[:, 0].isnan()).sum() == 8


def test_isotonic_is_the_nearest_rising_sequence() -> None:
    assert isotonic(torch.tensor([1.0, 3.0, 2.0, 4.0, 0.0])).tolist() == [1, 2.25, 2.25, 2.25, 2.25]
    assert isotonic(torch.tensor([1.0, 2.0, 5.0])).tolist() == [1, 2, 5]


# -- few true labels -------------------------------------------------------------------------------


def targets(name: KindName, outputs: Any, true: Any, *filter_and_mask: Any) -> Any:
    config = PseudoLabelConfig(0.5, threshold=None, target_precision=0.5, true_labels=False)
    return prepare_targets(find_kind(name), outputs, true, config, *filter_and_mask)


def drawn(logits: Tensor) -> Tensor:
    """Labels [N, …] drawn from what the logits [N, …, C] say."""
    every = logits.reshape(-1, logits.shape[-1]).softmax(-1)
    found = torch.multinomial(every, 1, generator=torch.Generator().manual_seed(1))
    return found.view(logits.shape[:-1])


def test_tokens_and_pixels_calibrate_as_whole_examples_do() -> None:
    tokens, mask = 2 * random(300, 6, CLASSES), torch.ones(300, 6)
    mask[:, 4:] = 0
    words = TrueLabels(torch.arange(300), [row[:4] for row in drawn(tokens)])
    _, chosen = targets("token_classification", 3 * tokens, words, "threshold", mask)
    assert chosen.temperature == pytest.approx(3, rel=0.15) and chosen.threshold is not None
    maps = 2 * random(60, CLASSES, 5, 5)
    pixels = TrueLabels(torch.arange(60), drawn(maps.movedim(1, -1)))
    _, chosen = targets("segmentation", 3 * maps, pixels, "agreement")
    assert chosen.temperature == pytest.approx(3, rel=0.15)
    _, chosen = targets("segmentation", maps, None, "top_p")  # the surest share is one of pixels
    sure = confidence(maps.movedim(1, -1).reshape(-1, CLASSES))
    assert (sure >= chosen.current_threshold).float().mean() == pytest.approx(0.5, abs=0.01)


def test_without_labels_nothing_is_replaced_and_language_is_not_filtered() -> None:
    logits = random(9, CLASSES)
    outputs, chosen = targets("classification", logits, None, "threshold")
    assert (outputs is logits, chosen.threshold, chosen.temperature) == (True, None, 1.0)
    tops = top_tokens(random(2, 3, 9), 4)
    assert targets("language_modelling", tops, None, "top_p")[1].filter == "none"


def replaced(name: KindName, outputs: Tensor, labels: Any, mask: Tensor | None = None) -> Tensor:
    """Answers to examples 3 and 1, which are labelled; the others stay."""
    rows = torch.tensor([3, 1])
    found = with_true_labels(find_kind(name), outputs, TrueLabels(rows, labels), mask)
    others = [n for n in range(len(outputs)) if n not in (1, 3)]
    assert torch.equal(found[others], outputs[others])
    return found[rows]


def test_classes_become_certain() -> None:
    found = replaced("classification", random(5, CLASSES), torch.tensor([2, 0]))
    assert found.softmax(-1).amax(-1).tolist() == [1.0, 1.0]
    assert found.argmax(-1).tolist() == [2, 0]
    yes = replaced("multi_label", random(5, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert yes.sigmoid().round().tolist() == [[1, 0], [0, 0]]


def test_tokens_without_a_label_stay_the_experts() -> None:
    outputs, mask = random(5, 4, CLASSES), torch.tensor([[0, 1, 0, 1]] * 5)
    words = [torch.tensor([2, 1]), torch.tensor([3])]
    found = replaced("token_classification", outputs, words, mask)
    assert found[0].argmax(-1)[[1, 3]].tolist() == [2, 1] and found[1].argmax(-1)[1] == 3
    assert torch.equal(found[:, [0, 2]], outputs[[3, 1]][:, [0, 2]])
    assert torch.equal(found[1, 3], outputs[1, 3])


def test_maps_are_brought_to_the_size_of_the_answers() -> None:
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    labels[:, :2] = 3
    labels[:, :, 2:] = -100
    outputs = random(5, CLASSES, 2, 2)
    found = replaced("segmentation", outputs, labels)
    assert found.argmax(1)[:, :, 0].tolist() == [[3, 0], [3, 0]]
    assert torch.equal(found[..., 1], outputs[[3, 1]][..., 1])


def test_values_are_those_of_the_labels_where_they_are_known() -> None:
    assert replaced("regression", random(5, 1), torch.tensor([[4.0], [5.0]])).tolist() == [[4], [5]]
    depth = torch.full((2, 4, 4), 7.0)
    depth[:, :2] = 0  # not known
    for outputs in (random(5, 2, 2), random(5, 1, 2, 2)):
        found = replaced("depth", outputs, depth).view(2, 2, 2)
        assert found[:, 1].tolist() == [[7, 7], [7, 7]]
        assert torch.equal(found[:, 0], outputs[[3, 1]].view(2, 2, 2)[:, 0])
    normals, outputs = torch.zeros(2, 3, 2, 2), random(5, 3, 2, 2)
    normals[:, 2, 0] = 1
    found = replaced("normals", outputs, normals)
    assert found[:, :, 0].movedim(1, -1).tolist() == [[[0, 0, 1]] * 2] * 2
    assert torch.equal(found[:, :, 1], outputs[[3, 1]][:, :, 1])


# -- calibration -----------------------------------------------------------------------------------


def test_confidence_that_means_what_it_says_has_no_error() -> None:
    logits, labels = calibrated(20000)
    for factor in (1.0, 0.4, 3.0):
        temperature = fit_temperature(factor * logits, labels)
        assert temperature == pytest.approx(factor, rel=0.06)
        found = calibration(factor * logits / temperature, labels)
        assert found.ece is not None and found.ece < 0.02
    sure, labels = torch.tensor([[100.0, 0.0], [100.0, 0.0]]), torch.tensor([0, 1])
    found = calibration(sure, labels)
    assert (found.ece, found.brier) == pytest.approx((0.5, 1.0))
    found = calibration(sure, None)
    assert found.histogram == [*[0.0] * (BINS - 1), 1.0]
    assert found.ece is found.brier is None
    assert sum(calibration(calibrated()[0], None).histogram) == pytest.approx(1.0)


def told(name: KindName, *given: Any) -> Any:
    """What is published of how sure merge and expert are."""
    return calibrated_score("t", find_kind(name), *given).calibration


def test_tokens_are_counted_where_the_mask_and_the_labels_say_so() -> None:
    merged, expert = random(2, 5, CLASSES), random(2, 5, CLASSES, seed=1)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]])
    words = [torch.tensor([2, 0, 1]), torch.tensor([3])]
    found = told("token_classification", merged, expert, words, mask)["merged"]
    rows = torch.cat([merged[0, 1:4], merged[1, 1:2]])
    expected = calibration(rows, torch.tensor([2, 0, 1, 3]))
    assert (found["ece"], found["brier"]) == pytest.approx((expected.ece, expected.brier))
    found = told("token_classification", merged, expert, None, mask)["merged"]
    assert found["histogram"] == pytest.approx(expected.histogram) and found["ece"] is None


def test_pixels_are_counted_but_the_ignored_ones_and_maps_are_enlarged_to_their_labels() -> None:
    merged, expert = random(2, CLASSES, 3, 3), random(2, CLASSES, 3, 3, seed=1)
    labels = expert.argmax(1)
    labels[:, 0] = -100
    rows = expert.movedim(1, -1)[:, 1:].reshape(-1, CLASSES)
    found = told("segmentation", merged, expert, labels)
    assert found["expert"]["ece"] == pytest.approx(calibration(rows, rows.argmax(-1)).ece)
    found = told("segmentation", merged, merged, torch.zeros(2, 8, 8, dtype=torch.int64))
    assert sum(found["merged"]["histogram"]) == pytest.approx(1.0)


def test_each_yes_and_no_is_counted() -> None:
    merged, labels = random(6, 3), (random(6, 3, seed=1) > 0).float()
    found, yes = told("multi_label", merged, merged, labels)["merged"], merged.sigmoid()
    assert found["brier"] == pytest.approx(float(2 * (yes - labels).square().mean()))
    assert found["mean_confidence"] == pytest.approx(float(torch.maximum(yes, 1 - yes).mean()))
    for name in ("regression", "depth", "normals"):
        assert told(name, *[random(3, 3, 2, 2)] * 2, None) is None
