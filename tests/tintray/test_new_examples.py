"""New examples beside known ones: what is noted of each, statistics, estimates, what is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tintray.errors import IntegrityError
from tintray.pools.pool import Pool
from tintray.references.disturbing import DISTURBANCES, disturbed
from tintray.references.estimates import UNTRIED, Answers, by_falls, falls, learned
from tintray.references.inputs import LOOKS, looks
from tintray.references.observing import FEATURES, HeadInputs, Observed
from tintray.references.reference import FORM, LEAST, MOST, Reference
from tintray.references.two_samples import (
    compare,
    holm,
    kolmogorov_smirnov,
    mean_discrepancy,
    stability,
)
from tintray.tasks.evaluation import TaskScore
from tintray.tasks.outputs import TopTokens, top_tokens
from tintray.tasks.registry import find_kind

HALVES = torch.tensor(
    [[False, False, False, True, True, True], [True, False, True, False, True, False]]
)


def drawn(seed: int, count: int, classes: int = 4, sure: float = 3.0) -> Tensor:
    """Logits [N, C] of a model that is as sure as that."""
    return sure * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def observed(logits: Tensor, features: Tensor | None = None) -> Observed:
    return replace(Observed.of(find_kind("classification"), logits, None), features=features)


def scored(accuracy: float, examples: int = 300) -> TaskScore:
    return TaskScore("t", "accuracy", accuracy, 1.0, accuracy, examples)


# Statistics


@pytest.mark.parametrize("split", range(2))
def test_statistics_are_those_of_their_definitions(split: int) -> None:
    values, second = torch.tensor([0.1, 0.4, 0.4, 0.2, 0.9, 0.4]), HALVES[split]
    one, two = values[~second], values[second]
    gaps = [abs((one <= v).double().mean() - (two <= v).double().mean()) for v in values]
    assert kolmogorov_smirnov(values, HALVES)[split].item() == pytest.approx(float(max(gaps)))

    shares = torch.eye(3)[[0, 1, 2, 0, 0, 1]]
    p, q = ((shares[of].sum(0) + 0.5) / (len(shares[of]) + 1.5) for of in (~second, second))
    expected = float(((q - p) * (q / p).log()).sum())
    assert stability(shares, HALVES)[split].item() == pytest.approx(expected, rel=1e-5)

    points = torch.stack([values, values.flip(0)], 1)
    distances = torch.cdist(points, points).square()
    kernel = (-distances / distances[~torch.eye(6, dtype=torch.bool)].median()).exp()
    a, b = second, ~second
    expected = float(kernel[a][:, a].mean() + kernel[b][:, b].mean() - 2 * kernel[a][:, b].mean())
    assert mean_discrepancy(points, HALVES)[split].item() == pytest.approx(expected, abs=1e-6)


def test_p_values_are_corrected_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.7, 0.9]) == [1.0, 1.0]


def test_what_is_alike_is_seldom_said_to_differ_and_what_moved_is_seen() -> None:
    def looked(seed: int, shift: float) -> bool:
        random = torch.Generator().manual_seed(seed)
        known, new = (
            {
                "confidence": torch.rand(n, generator=random),
                "classes": torch.eye(5)[torch.randint(5, (n,), generator=random)],
                "features": torch.randn(n, 8, generator=random),
            }
            for n in (80, 60)
        )
        new["features"] += shift
        return any(of.adjusted <= 0.05 for of in compare(known, new))

    alarms = sum(looked(seed, 0.0) for seed in range(40))
    assert alarms <= 6  # 2 are expected, and more than 6 come once in two hundred times
    assert all(looked(seed, 0.8) for seed in range(10))


# What is noted


def test_each_kind_is_noted_by_how_sure_it_is_and_of_what() -> None:
    logits = torch.tensor([[0.0, 2.0, 0.0], [5.0, 0.0, 0.0]])
    p = logits.softmax(-1)
    found = observed(logits)
    assert found.classes is not None and found.classes.tolist() == [[1], [0]]
    assert torch.allclose(found.numbers["confidence"], p.amax(-1))
    assert torch.allclose(found.numbers["entropy"], -(p * p.log()).sum(-1))

    several = Observed.of(find_kind("multi_label"), logits - 1, None)
    assert several.classes is not None and several.classes.tolist() == [[-1, 1, -1], [0, -1, -1]]
    yes = (logits - 1).sigmoid()
    assert torch.allclose(several.numbers["confidence"], yes.maximum(1 - yes).mean(1))

    mask = torch.tensor([[True, False], [True, True]])
    tokens = torch.stack([logits, logits.flip(0)])  # [N, S, C]
    for outputs in (tokens, top_tokens(tokens, 3)):
        name = "token_classification" if isinstance(outputs, Tensor) else "language_modelling"
        of_tokens = Observed.of(find_kind(name), outputs, mask)
        assert of_tokens.classes is not None
        assert of_tokens.classes.tolist() == [[1, -1], [0, 1]]
        expected = torch.tensor([p[0].max(), (p[0].max() + p[1].max()) / 2])
        assert torch.allclose(of_tokens.numbers["confidence"], expected, atol=1e-6)
    cut = top_tokens(tokens, 2)
    assert isinstance(cut, TopTokens)
    entropy = Observed.of(find_kind("language_modelling"), cut, None).numbers["entropy"]
    assert torch.allclose(entropy, -(p * p.log()).sum(-1).mean().expand(2), atol=1e-5)

    maps = tokens.movedim(-1, 1)[..., None]  # [N, C, H, W]
    pixels = Observed.of(find_kind("segmentation"), maps, None)
    assert pixels.classes is not None and pixels.classes.shape == (2, 2)

    values = Observed.of(find_kind("regression"), logits, None)
    assert values.classes is None and values.numbers["answer"].tolist() == logits.mean(1).tolist()


class Pooled(nn.Module):
    """A head over the tokens of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Any:
        return self.head(hidden_states=tokens) if False else self.head(tokens).mean(1)


def test_features_are_the_heads_inputs_whatever_stands_beside_a_text() -> None:
    module, texts = Pooled(), torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)

    def features(padded: Tensor, real: Tensor) -> Tensor:
        inputs = HeadInputs()
        with inputs.hooked(module, "head"), torch.no_grad():
            inputs.told_of(lambda batch: module(batch["x"]))({"x": padded, "attention_mask": real})
        found = inputs.features(3)
        assert found is not None and found.shape == (3, FEATURES)
        assert inputs.features(4) is None
        return found

    short = features(texts[:, :3], mask[:, :3])
    assert torch.allclose(features(texts, mask), short, atol=1e-6)
    module(texts)
    assert not module.head._forward_pre_hooks


def test_noise_is_noted_though_no_answer_changes() -> None:
    """By what images look like, and by nothing else; of other merges what both know is compared."""

    def noted(pixels: Tensor) -> Observed:
        inputs = HeadInputs()
        run = inputs.told_of(lambda batch: logits[: len(batch["pixel_values"])])
        outputs = torch.cat([run({"pixel_values": part}) for part in pixels.split(32)])
        return Observed.of(find_kind("classification"), outputs, None, inputs)

    random, logits = torch.Generator().manual_seed(0), drawn(0, 32)
    images = torch.zeros(128, 3, 8, 8)
    images[:, :, 2:6, 2:6] = 0.5 + 0.1 * torch.rand(128, 1, 1, 1, generator=random)
    noise = 0.1 * torch.randn(64, 3, 8, 8, generator=random)
    known = Reference.of(noted(images[:64]), scored(0.8))
    assert known is not None
    read = Reference.read(known.tensors(), "here")

    def found(new: Tensor) -> set[str]:
        return {of.of for of in read.compare(noted(new)) if of.adjusted <= 0.05}

    assert found(images[64:]) == set() and "sharpness" in found(images[64:] + noise)
    assert found(images[64:] + noise) <= set(LOOKS)
    older = Reference.of(observed(drawn(0, 64)), scored(0.8))
    assert older is not None
    assert {of.of for of in older.compare(noted(images))} == {"confidence", "entropy", "classes"}


def test_what_inputs_look_like_is_told_of_images_and_texts() -> None:
    edge = torch.zeros(1, 3, 4, 4)
    edge[:, :, :, 2:] = 1.0
    image = looks({"pixel_values": edge})
    assert {name: round(float(of), 3) for name, of in image.items()} == {
        "brightness": 0.5, "contrast": 0.516, "sharpness": 0.25,
    }  # fmt: skip
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    text = looks({"input_ids": mask, "attention_mask": mask})
    assert text["length"].tolist() == [2, 3] and {*image, *text} == set(LOOKS)
    assert looks({"x": edge}) == {}


# What is kept


def test_a_reference_is_read_as_it_was_kept() -> None:
    logits = drawn(0, MOST + 50, 40)
    known = Reference.of(observed(logits, torch.randn(MOST + 50, FEATURES)), scored(0.8))
    assert known is not None and len(known) == MOST
    tensors = known.tensors()
    assert sum(t.nbytes for t in tensors.values()) < 100_000
    read = Reference.read(tensors, "here")
    new = observed(drawn(1, 200, 40), torch.randn(200, FEATURES))
    assert read.compare(new) == known.compare(new)
    assert read.estimate(new) == known.estimate(new)
    assert Reference.of(observed(logits[: LEAST - 1]), scored(0.8)) is None


def test_how_sure_an_answer_is_stands_among_the_known() -> None:
    logits = drawn(0, 100, 40)
    known = Reference.of(observed(logits), scored(0.8))
    assert known is not None
    surer = known.sureness()
    assert surer is not None
    entropies = sorted(known.numbers["entropy"].tolist(), reverse=True)
    assert [101 * surer(one) for one in entropies] == pytest.approx(range(1, 101))
    assert 0 < surer(9.0) < 0.01 and 0.99 < surer(-1.0) < 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", torch.zeros(3, FEATURES)),
        ("shares", torch.zeros(60, 9)),
        ("number.confidence", torch.full((60,), math.nan)),
        ("threshold.entropy", torch.zeros(2)),
        ("columns", None),
        ("number.entropy", None),
    ],
)
def test_a_damaged_reference_is_refused(name: str, value: Tensor | None) -> None:
    known = Reference.of(observed(drawn(0, 60), torch.randn(60, FEATURES)), scored(0.8))
    assert known is not None
    tensors = known.tensors()
    tensors.pop(f"{FORM}/{name}")
    tensors |= {} if value is None else {f"{FORM}/{name}": value}
    with pytest.raises(IntegrityError, match=r"here does not say .* publish the merge again"):
        Reference.read(tensors, "here")


# Estimates


def test_right_answers_are_estimated_by_how_sure_a_model_is() -> None:
    """Of a calibrated model, whose answers are right as often as it says."""

    def right(seed: int, sure: float) -> tuple[Tensor, float]:
        logits = drawn(seed, 4000, sure=sure)
        return logits, float(logits.softmax(-1).amax(-1).mean())

    logits, accuracy = right(0, 3.0)
    known = Reference.of(observed(logits), scored(accuracy))
    assert known is not None
    found = [known.estimate(observed(right(1, sure)[0])) for sure in (3.0, 2.0, 1.0)]
    assert all(of is not None and of.known == accuracy for of in found)
    values = [of.value for of in found if of is not None]
    assert abs(values[0] - right(1, 3.0)[1]) < 0.03
    assert values[0] > values[1] > values[2]


def test_a_model_that_calls_everything_the_same_is_not_taken_for_right() -> None:
    known = Reference.of(observed(drawn(0, 400)), scored(0.8))
    assert known is not None
    same = torch.tensor([9.0, 0, 0, 0]).expand(400, 4)
    found = known.estimate(observed(same))
    assert found is not None and 0.25 < found.value < 0.65 and found.value - found.error < 0.3
    assert found.by == "sureness and mix of answers"


def test_of_a_class_only_the_surest_answers_count_to_its_known_share() -> None:
    """What is told by mix, by hand: of four answers of one class, two count."""

    def answers(classes: list[int], confidence: list[float]) -> Answers:
        return Answers(torch.tensor(confidence), torch.zeros(4), torch.eye(2)[classes])

    known = answers([0, 0, 1, 1], [1.0, 1.0, 1.0, 1.0])
    alike = falls(known, answers([1, 1, 0, 0], [1.0, 1.0, 1.0, 1.0]), 0.5)[1]
    moved = falls(known, answers([0, 0, 0, 0], [0.6, 0.9, 0.8, 0.7]), 0.5)[1]
    assert float(moved - alike) == pytest.approx(1 - (0.9 + 0.8) / 4)


def tried(changed: int) -> Reference:
    """What is kept of a model that is less sure of disturbed images; so many of six it calls other
    than they are.
    """
    logits = drawn(0, 400)
    rows = torch.arange(400)
    pixels = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def answer(pools: Iterable[Pool]) -> Iterator[Observed]:
        for row in (of.inputs["row"] for of in pools):
            given, other = 0.6 * logits[row], row % 6 < changed
            yield observed(torch.where(other[:, None], given.roll(1, -1), given))

    pool = Pool({"pixel_values": pixels, "row": rows}, None, None, "images")
    found = Reference.of(observed(logits), scored(0.9), pool, answer)
    assert found is not None
    return found


def test_what_a_fall_counts_is_learned_on_examples_that_are_disturbed() -> None:
    plain = Reference.of(observed(drawn(0, 400)), scored(0.9))
    assert plain is not None and torch.equal(plain.weights, UNTRIED)
    harmless, harmful = tried(0), tried(3)
    for row in range(2):
        assert harmless.weights[row].sum() < 0.7 < 1 < harmful.weights[row].sum()
    read = Reference.read(harmful.tensors(), "here")
    assert torch.equal(read.weights, harmful.weights) and read.threshold == harmful.threshold
    older = {n: t for n, t in harmful.tensors().items() if not n.endswith("weights")}
    assert torch.equal(Reference.read(older, "here").weights, UNTRIED)


def test_weights_are_those_under_which_disturbed_examples_fall_as_they_do() -> None:
    """By answers that are made so: half of them change, sureness and mix tell of twice as much."""
    random = torch.Generator().manual_seed(0)
    classes = torch.eye(4)[torch.arange(200) % 4]
    same = Answers(torch.ones(200), torch.zeros(200), classes)

    def changed(share: float) -> Answers:
        rows = torch.rand(200, generator=random) < share
        doubtful = rows | (torch.rand(200, generator=random) < share)
        other = torch.where(rows[:, None], classes.roll(1, 0), classes)
        return Answers(torch.where(doubtful, 0.3, 1.0), torch.where(doubtful, 1.2, 0.0), other)

    weights = learned(same, same, [changed(of / 20) for of in range(1, 10)], 0.5, 0.97)
    for share in (0.1, 0.3):
        new = changed(share)
        value, error = by_falls(0.97, weights, same, new, 0.5)
        untried, _ = by_falls(0.97, UNTRIED, same, new, 0.5)
        true = 0.97 * float((new.classes * classes).sum(1).mean())
        assert abs(value - true) < 0.05 and abs(value - true) < abs(untried - true) and error > 0


def test_features_that_moved_tell_of_a_fall_that_answers_hide() -> None:
    """A model that is as sure as ever: only where its features went says that answers changed."""
    random = torch.Generator().manual_seed(0)
    classes = torch.eye(4)[torch.arange(200) % 4]
    features = torch.randn(200, 8, generator=random)
    same = Answers(torch.ones(200), torch.zeros(200), classes, features)

    def changed(share: float) -> Answers:
        rows = torch.rand(200, generator=random) < share
        other = torch.where(rows[:, None], classes.roll(1, 0), classes)
        return Answers(torch.ones(200), torch.zeros(200), other, features + 4 * share)

    weights = learned(same, same, [changed(of / 20) for of in range(2, 11)], 0.5, 0.97)
    new = changed(0.3)
    blind = Answers(*new[:3])
    true = 0.97 * float((new.classes * classes).sum(1).mean())
    seen, unseen = (by_falls(0.97, weights, same, of, 0.5)[0] for of in (new, blind))
    assert true < seen < unseen - 0.1 and unseen > 0.9  # held back, as by few sets it is
    assert float(falls(same, same, 0.5)[2]) == 0


def test_images_are_disturbed_as_they_lie_in_memory_and_always_alike() -> None:
    bytes_ = torch.randint(256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    floats = bytes_.float() / 127.5 - 1
    for pixels in (bytes_.to(torch.uint8), floats):
        pool = Pool({"pixel_values": pixels, "other": torch.arange(6)}, None, None, "images")
        made = [of.inputs["pixel_values"] for of in disturbed(pool)]
        again = [of.inputs["pixel_values"] for of in disturbed(pool)]
        assert len(made) == len(DISTURBANCES)
        for one, two in zip(made, again, strict=True):
            assert one.dtype == pixels.dtype and one.shape == pixels.shape
            assert torch.equal(one, two) and not torch.equal(one, pixels)
            assert one.min() >= pixels.min() and one.max() <= pixels.max()
    assert list(disturbed(Pool({"input_ids": torch.ones(2, 3)}, None, None, "texts"))) == []


def test_of_many_answers_an_example_the_fall_of_confidence_is_taken() -> None:
    kind, mask = find_kind("token_classification"), torch.ones(50, 3)

    def tokens(sure: float) -> Observed:
        return Observed.of(kind, drawn(0, 150, sure=sure).view(50, 3, 4), mask)

    known = Reference.of(tokens(3.0), replace(scored(0.7), metric="token_accuracy"))
    assert known is not None
    found = known.estimate(tokens(1.0))
    fell = tokens(3.0).numbers["confidence"].mean() - tokens(1.0).numbers["confidence"].mean()
    assert found is not None and found.metric == "token_accuracy"
    assert found.value == pytest.approx(0.7 - float(fell), abs=1e-6)
    f1 = Reference.of(tokens(3.0), replace(scored(0.7), metric="miou", agreement=0.9))
    assert f1 is not None and f1.known == ("agreement", 0.9)
    values = Observed.of(find_kind("regression"), torch.randn(50, 1), None)
    of_values = Reference.of(values, scored(0.5))
    assert of_values is not None and of_values.estimate(values) is None
