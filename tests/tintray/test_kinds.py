"""What holds for every kind of task: name, metrics, labels, loss, and doubts about an expert."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch

import tintray
from tintray.errors import InputError
from tintray.tasks.classes import CLASSIFICATION, ClassKind
from tintray.tasks.confidence import ConfidenceFilter
from tintray.tasks.doubts import better_than_chance, doubt, shortfall
from tintray.tasks.evaluation import TaskScore, score
from tintray.tasks.kind import LossConfig
from tintray.tasks.kinds import Distance, Filter, KindName
from tintray.tasks.losses import multi_label_loss, value_loss
from tintray.tasks.metrics import METRICS
from tintray.tasks.outputs import top_tokens
from tintray.tasks.registry import KINDS, find_kind
from tintray.tasks.values import ValueKind

ROOT = Path(tintray.__file__).parents[1]
N, C, S = 60, 4, 5
Expert = Literal["knows", "guesses", "unsure", "constant"]
every_kind = pytest.mark.parametrize("name", get_args(KindName))


def answers(name: KindName, expert: Expert) -> tuple[Any, Any, Any]:
    """Outputs of such an expert on N examples, which tokens count, and labels."""
    random = torch.Generator().manual_seed(0)
    kind = find_kind(name)
    tokens = kind.dims == (3,)
    places = (S,) if tokens else (3, 3) if kind.per_pixel else ()
    if isinstance(kind, ValueKind):
        true = torch.rand(N, 3 if name == "normals" else 1, *places, generator=random) + 0.5
        noise = torch.rand(true.shape, generator=random) + 0.5
        if name == "normals":
            true, noise = 2 * true - 2, 2 * noise - 2
        outputs = true + 0.01 * noise if expert == "knows" else noise
        outputs = outputs[:1].expand_as(outputs) if expert == "constant" else outputs
        return outputs, None, true[:, 0] if name == "depth" else true
    truth = torch.randint(0, C, (N, *places), generator=random)
    said = {"guesses": torch.randint(0, C, truth.shape, generator=random),
            "constant": torch.zeros_like(truth)}.get(expert, truth)  # fmt: skip
    logits = torch.nn.functional.one_hot(said, C) * (0.05 if expert == "unsure" else 8.0)
    mask = torch.ones(N, S) if tokens else None
    match name:
        case "multi_label":
            true = torch.nn.functional.one_hot(truth, C).float()
            return (0.05 if expert == "unsure" else 4) * (2.0 * (logits > 0) - 1), None, true
        case "segmentation":
            return logits.movedim(-1, 1), None, truth
        case "language_modelling" | "seq2seq":
            return top_tokens(logits, C), mask, truth
    return logits, mask, list(truth) if tokens else truth


def doubted(name: KindName, expert: Expert, *, labelled: bool) -> Any:
    outputs, mask, labels = answers(name, expert)
    test = (outputs, labels, mask) if labelled else ()
    return doubt(find_kind(name), outputs, mask, *test)


def test_the_job_file_knows_each_kind_and_nothing_else_names_one() -> None:
    assert sorted(get_args(KindName)) == sorted(KINDS)
    with pytest.raises(InputError, match="no kind of task 'poetry'; expected one of classific"):
        find_kind("poetry")  # type: ignore[arg-type]
    compared = re.compile(rf'(==|!=|\bin|case) *\(?"({"|".join(KINDS)})"')
    files = [file for part in ("tintray", "jobs") for file in (ROOT / part).rglob("*.py")]
    assert [f for f in files if "zoo" not in f.parts and compared.search(f.read_text())] == []


@every_kind
def test_what_a_kind_is_measured_by_is_declared_and_labels_may_count_for_none(
    name: KindName,
) -> None:
    kind, (outputs, mask, labels) = find_kind(name), answers(name, "knows")
    assert kind.measure(outputs, labels, mask).keys() <= METRICS.keys()
    for known in (labels, None):
        found = score("t", kind, outputs, outputs, known, mask)
        assert found.metric in METRICS and found.agreement == pytest.approx(1)
    assert kind.any_counts(labels)
    if name not in ("classification", "multi_label", "regression"):  # there, each example has one
        none = [torch.full_like(of, 0 if name in ("depth", "normals") else -100) for of in labels]
        assert not kind.any_counts(none if isinstance(labels, list) else torch.stack(none))


def test_score_with_and_without_labels() -> None:
    merged, expert = torch.eye(4), torch.eye(4)[[0, 1, 3, 3]]
    found = score("t", CLASSIFICATION, merged, expert, torch.tensor([0, 1, 2, 0]))
    details = {"accuracy": (0.75, 0.5)}
    assert found == TaskScore("t", "accuracy", 0.75, 0.5, 0.75, 4, details=details)
    assert found.normalised == 1.5
    found = score("t", CLASSIFICATION, merged, expert, None)
    assert found == TaskScore("t", "agreement", 0.75, 1.0, 0.75, 4)


def compared(name: KindName, filter_: Filter, merged: Any, expert: Any, *loss: Any) -> Any:
    chosen, config = ConfidenceFilter(filter_), LossConfig(*loss)
    return find_kind(name).compare(merged, expert, None, chosen, config)


def test_answers_are_compared_as_the_job_says() -> None:
    random = torch.Generator().manual_seed(0)
    merged, expert = torch.randn(2, 8, 5, generator=random)
    for distance in get_args(Distance):
        found = compared("regression", "none", merged, expert, "soft", 1.0, distance)
        assert torch.equal(found.losses, value_loss(merged, expert, distance))
    merged, expert = torch.randn(2, 2, 5, 3, 4, generator=random)  # classes are in the second place
    found = compared("segmentation", "none", merged, expert, "hard")
    expected = torch.nn.functional.cross_entropy(merged, expert.argmax(1), reduction="none")
    assert torch.allclose(found.losses, expected.mean((1, 2)))


def test_the_answers_to_each_of_many_questions_are_filtered_apart() -> None:
    """The merge contradicts its expert on the first, more surely; on the second, less surely."""
    merged, expert = torch.tensor([[4.0, 1.0, 2.0]]), torch.tensor([[-1.0, -4.0, 2.0]])
    found = compared("multi_label", "agreement", merged, expert)
    assert found.selected.tolist() == found.weights.tolist() == pytest.approx([2 / 3])
    assert torch.allclose(found.losses, multi_label_loss(merged[:, 1:], expert[:, 1:]))


# -- doubts ----------------------------------------------------------------------------------------


@every_kind
def test_experts_that_guess_are_told_from_those_that_know(name: KindName) -> None:
    for labelled in (True, False):
        assert doubted(name, "knows", labelled=labelled) is None
    found = doubted(name, "guesses", labelled=True)
    assert found.at_chance and not found.unsure
    assert "cannot be told from one that guesses by its 60 test examples" in found.said
    assert doubted(name, "guesses", labelled=False) is None  # without labels nobody can know
    found = doubted(name, "constant", labelled=False)
    assert found.said == "answers the same for each of the 60 examples of its pool"
    assert found.at_chance and doubted(name, "constant", labelled=True).at_chance
    if not isinstance(find_kind(name), ValueKind):
        found = doubted(name, "unsure", labelled=False)
        assert found.unsure and found.at_chance
        assert not doubted(name, "unsure", labelled=True).at_chance  # right, and labels show it


def test_a_pool_of_one_class_is_no_bad_expert_where_labels_show_it() -> None:
    outputs, _, labels = answers("classification", "knows")
    found = doubt(CLASSIFICATION, outputs[:1].expand(N, C), None, outputs, labels)
    assert found is not None and not found.at_chance
    one = torch.zeros(N, dtype=torch.int64)  # and a test set of one class can be passed
    right = torch.nn.functional.one_hot(one, C) * 8.0
    right[:3] = right[:3].roll(1, -1)
    assert better_than_chance(CLASSIFICATION, right, one, None) is True
    assert better_than_chance(CLASSIFICATION, right.roll(1, -1), one, None) is False


def test_few_examples_say_nothing() -> None:
    for expert in get_args(Expert):
        outputs, _, labels = answers("classification", expert)
        assert better_than_chance(CLASSIFICATION, outputs[:5], labels[:5], None) is None
    assert doubt(CLASSIFICATION, outputs[:5], None, outputs[:5], labels[:5]) is None
    often = torch.zeros(30, dtype=torch.int64)
    often[0] = 1  # always the first class is right on 29 of 30, and no more can be shown
    always = torch.tensor([8.0, 0.0])
    assert better_than_chance(CLASSIFICATION, always.expand(30, 2), often, None) is None
    often = (torch.arange(100) % 5 == 0).long()  # 80 % of one class
    assert better_than_chance(CLASSIFICATION, always.expand(100, 2), often, None) is False
    better = torch.nn.functional.one_hot(often, 2) * 8.0
    assert better_than_chance(CLASSIFICATION, better, often, None) is True


@every_kind
def test_a_merge_that_learned_nothing_is_told(name: KindName) -> None:
    def said(agreement: float, selected: float = 1.0) -> str:
        found = TaskScore("t", "agreement", agreement, 1.0, agreement, N)
        return shortfall(find_kind(name), C, found, selected) or ""

    assert said(0.9) == ""
    assert "kept nothing of its pool" in said(0.9, selected=0.0)
    assert "agrees with its expert on 0.0 % of 60 examples" in said(0.0)
    assert bool(said(0.2)) == isinstance(find_kind(name), ClassKind)


def test_a_part_of_a_pool_whose_longest_text_is_shorter_is_compared_as_far_as_it_goes() -> None:
    kind = find_kind("language_modelling")
    random = torch.Generator().manual_seed(0)
    answers = torch.randn(3, 7, 11, generator=random)
    expert, merged = kind.reduced(answers), kind.reduced(answers[:, :5].roll(1, 0))
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, 5:] = False  # padding beyond the longest of these three
    whole = kind.reduced(torch.cat([answers[:, :5].roll(1, 0), answers[:, 5:]], 1))
    agreement = kind.mean_agreement(merged, expert, mask)
    assert agreement == kind.mean_agreement(whole, expert, mask) < 1
