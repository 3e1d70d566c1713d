"""Few true labels: what they calibrate, and how they take the place of self-labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tintray.tasks.confidence import confidence
from tintray.tasks.kinds import KindName
from tintray.tasks.outputs import top_tokens
from tintray.tasks.registry import find_kind
from tintray.tinting.pseudo_labels import (
    PseudoLabelConfig,
    TrueLabels,
    prepare_targets,
    with_true_labels,
)

CLASSES = 4
TRUST = PseudoLabelConfig(0.5, threshold=None, target_precision=0.5, true_labels=False)


def targets(kind: KindName, outputs: Any, true: Any, *filter_and_mask: Any) -> Any:
    return prepare_targets(find_kind(kind), outputs, true, TRUST, *filter_and_mask)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(logits: Tensor) -> Tensor:
    """Labels [N, …] drawn from what the logits [N, …, C] say."""
    every = logits.reshape(-1, logits.shape[-1]).softmax(-1)
    found = torch.multinomial(every, 1, generator=torch.Generator().manual_seed(1))
    return found.view(logits.shape[:-1])


def test_tokens_and_pixels_calibrate_as_whole_examples_do() -> None:
    tokens = 2 * random(300, 6, CLASSES)
    labels = drawn(tokens)
    mask = torch.ones(300, 6)
    mask[:, 4:] = 0
    rows = torch.arange(300)
    words = TrueLabels(rows, [row[:4] for row in labels])
    _, judge = prepare_targets(
        find_kind("token_classification"), 3 * tokens, words, TRUST, "threshold", mask
    )
    assert judge.temperature == pytest.approx(3, rel=0.15)
    assert judge.threshold is not None
    maps = 2 * random(60, CLASSES, 5, 5)
    pixels = TrueLabels(torch.arange(60), drawn(maps.movedim(1, -1)))
    _, judge = targets("segmentation", 3 * maps, pixels, "agreement")
    assert judge.temperature == pytest.approx(3, rel=0.15)


def test_the_surest_share_is_one_of_pixels() -> None:
    maps = random(20, CLASSES, 3, 7)
    _, judge = targets("segmentation", maps, None, "top_p")
    pixels = confidence(maps.movedim(1, -1).reshape(-1, CLASSES))
    assert (pixels >= judge.current_threshold).float().mean() == pytest.approx(0.5, abs=0.01)


def test_without_labels_nothing_is_replaced_and_language_is_not_judged() -> None:
    logits = random(9, CLASSES)
    outputs, judge = targets("classification", logits, None, "threshold")
    assert outputs is logits
    assert (judge.threshold, judge.temperature) == (None, 1.0)
    _, judge = prepare_targets(
        find_kind("language_modelling"), top_tokens(random(2, 3, 9), 4), None, TRUST, "top_p"
    )
    assert judge.filter == "none"


def replaced(kind: KindName, outputs: Tensor, labels: Any, mask: Tensor | None = None) -> Tensor:
    """Answers to examples 1 and 3, which are labelled; the others stay."""
    rows = torch.tensor([3, 1])
    found = with_true_labels(find_kind(kind), outputs, TrueLabels(rows, labels), mask)
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
    outputs = random(5, 4, CLASSES)
    mask = torch.tensor([[0, 1, 0, 1]] * 5)
    words = [torch.tensor([2, 1]), torch.tensor([3])]
    found = replaced("token_classification", outputs, words, mask)
    assert found[0].argmax(-1)[[1, 3]].tolist() == [2, 1]
    assert found[1].argmax(-1)[1] == 3
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
    normals = torch.zeros(2, 3, 2, 2)
    normals[:, 2, 0] = 1
    outputs = random(5, 3, 2, 2)
    found = replaced("normals", outputs, normals)
    assert found[:, :, 0].movedim(1, -1).tolist() == [[[0, 0, 1]] * 2] * 2
    assert torch.equal(found[:, :, 1], outputs[[3, 1]][:, :, 1])
