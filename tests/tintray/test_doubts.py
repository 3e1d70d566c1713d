"""Experts that guess are told from those that know, for every kind of task."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor

from tintray.tasks.classes import CLASSIFICATION, ClassKind
from tintray.tasks.doubts import better_than_chance, doubt, shortfall
from tintray.tasks.evaluation import TaskScore
from tintray.tasks.kinds import KindName
from tintray.tasks.outputs import top_tokens
from tintray.tasks.registry import find_kind

N, C, S = 60, 4, 5
Expert = Literal["knows", "guesses", "unsure", "constant"]
VALUES = ("regression", "depth", "normals")


def answers(kind: KindName, expert: Expert, seed: int = 0) -> tuple[Any, Any, Any]:
    """Outputs of such an expert on N examples, their labels, and which tokens count."""
    random = torch.Generator().manual_seed(seed)
    shape = {"token_classification": (S,), "language_modelling": (S,), "seq2seq": (S,)}.get(kind)
    places = shape or ((3, 3) if find_kind(kind).per_pixel else ())
    mask = torch.ones(N, S) if shape else None
    if kind in VALUES:
        width = {"regression": 1, "depth": 1, "normals": 3}[kind]
        true = torch.rand(N, width, *places, generator=random) + 0.5
        noise = torch.rand(true.shape, generator=random) + 0.5
        if kind == "normals":
            true, noise = 2 * true - 2, 2 * noise - 2
        outputs = true + 0.01 * noise if expert == "knows" else noise
        if expert == "constant":
            outputs = outputs[:1].expand_as(outputs)
        return outputs, (true[:, 0] if kind == "depth" else true), None
    truth = torch.randint(0, C, (N, *places), generator=random)
    said = truth if expert in ("knows", "unsure") else truth[torch.randperm(N, generator=random)]
    if expert == "guesses":
        said = torch.randint(0, C, truth.shape, generator=random)
    if expert == "constant":
        said = torch.zeros_like(truth)
    logits = torch.nn.functional.one_hot(said, C).float() * (0.05 if expert == "unsure" else 8.0)
    if kind == "multi_label":
        size = 0.05 if expert == "unsure" else 4.0
        return size * torch.where(logits > 0, 1.0, -1.0), _hot(truth), None
    if kind == "segmentation":
        return logits.movedim(-1, 1), truth, None
    if kind in ("language_modelling", "seq2seq"):
        return top_tokens(logits, C), truth, mask
    return logits, (list(truth) if kind == "token_classification" else truth), mask


def _hot(truth: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(truth, C).float()


def of(kind: KindName, expert: Expert, *, labelled: bool) -> Any:
    outputs, _, mask = answers(kind, expert)
    if not labelled:
        return doubt(find_kind(kind), outputs, mask)
    return doubt(find_kind(kind), outputs, mask, *answers(kind, expert))


@pytest.mark.parametrize("kind", get_args(KindName))
def test_an_expert_that_knows_is_not_doubted(kind: KindName) -> None:
    assert of(kind, "knows", labelled=True) is None
    assert of(kind, "knows", labelled=False) is None


@pytest.mark.parametrize("kind", get_args(KindName))
def test_labels_show_who_guesses_however_surely(kind: KindName) -> None:
    found = of(kind, "guesses", labelled=True)
    assert found.at_chance and not found.unsure
    assert "cannot be told from one that guesses by its 60 test examples" in found.said
    assert of(kind, "guesses", labelled=False) is None  # without them nobody can know


@pytest.mark.parametrize("kind", get_args(KindName))
def test_the_same_answer_to_all_is_told_without_labels(kind: KindName) -> None:
    found = of(kind, "constant", labelled=False)
    assert (
        found.at_chance and found.said == "answers the same for each of the 60 examples of its pool"
    )
    assert of(kind, "constant", labelled=True).at_chance


@pytest.mark.parametrize("kind", [kind for kind in get_args(KindName) if kind not in VALUES])
def test_unsure_of_everything_is_told_without_labels(kind: KindName) -> None:
    found = of(kind, "unsure", labelled=False)
    assert found.unsure and found.at_chance
    assert not of(kind, "unsure", labelled=True).at_chance  # right all the same, and labels show it


def test_a_pool_of_one_class_is_no_bad_expert_where_labels_show_it() -> None:
    outputs, labels, _ = answers("classification", "knows")
    pool = outputs[:1].expand(N, C)
    found = doubt(CLASSIFICATION, pool, None, outputs, labels)
    assert found is not None and not found.at_chance
    one = torch.zeros(N, dtype=torch.int64)  # and a test set of one class can be passed
    right = torch.nn.functional.one_hot(one, C) * 8.0
    right[:3] = right[:3].roll(1, -1)
    assert better_than_chance(CLASSIFICATION, right, one, None) is True
    assert better_than_chance(CLASSIFICATION, right.roll(1, -1), one, None) is False


def test_few_examples_say_nothing() -> None:
    for expert in ("knows", "guesses", "constant"):
        outputs, labels, _ = answers("classification", expert)
        assert better_than_chance(CLASSIFICATION, outputs[:5], labels[:5], None) is None
        assert doubt(CLASSIFICATION, outputs[:5], None, outputs[:5], labels[:5]) is None
    often = torch.zeros(30, dtype=torch.int64)
    often[0] = 1  # always the first class is right on 29 of 30, and no more can be shown
    always = torch.tensor([8.0, 0.0]).expand(30, 2)
    assert better_than_chance(CLASSIFICATION, always, often, None) is None


def test_an_expert_of_the_commonest_class_guesses() -> None:
    labels = (torch.arange(100) % 5 == 0).long()  # 80 % of one class
    always = torch.tensor([8.0, 0.0]).expand(100, 2)
    assert better_than_chance(CLASSIFICATION, always, labels, None) is False
    better = torch.nn.functional.one_hot(labels, 2) * 8.0
    assert better_than_chance(CLASSIFICATION, better, labels, None) is True


@pytest.mark.parametrize("kind", get_args(KindName))
def test_a_merge_that_learned_nothing_is_told(kind: KindName) -> None:
    def said(agreement: float, kept: float = 1.0) -> str | None:
        return shortfall(
            find_kind(kind), C, TaskScore("t", "agreement", agreement, 1.0, agreement, N), kept
        )

    assert said(0.9) is None
    assert "kept nothing of its pool" in (said(0.9, kept=0.0) or "")
    assert "agrees with its expert on 0.0 % of 60 examples" in (said(0.0) or "")
    assert (said(0.2) is not None) == (isinstance(find_kind(kind), ClassKind))
