"""Mixed batches over one backbone: what is kept in memory, what is refused, what is said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tintray
from tests.conftest import Published
from tests.tiny_zoo import TinyZoo
from tintray.errors import InputError, IntegrityError, NotFoundError
from tintray.jobs import api
from tintray.models.norms import BatchSegments
from tintray.published.merge import open_folder
from tintray.serving.answers import Reader, class_names
from tintray.serving.engine import Engine
from tintray.serving.inputs import Preparation
from tintray.serving.recency import Budget, Recency
from tintray.tasks.registry import find_kind
from tintray.tinting.per_task import PerTaskProducts
from tintray.tinting.tint_layers import TintLayer
from tintray.vectors.task_vectors import DOWN, UP


def picture(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def png(image: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("budget", "asked", "hits", "kept"),
    [
        (None, "abcabc", 3, "abc"),
        ("2", "abab", 2, "ab"),
        ("2", "abcab", 0, "ab"),
        ("2", "abacab", 2, "ab"),  # what was used last stays
        ("1KiB", "aab", 1, "b"),  # a value of more than half the budget is alone there
    ],
)
def test_what_was_used_longest_ago_gives_way(
    budget: str | None, asked: str, hits: int, kept: str
) -> None:
    values = Recency(str.upper, lambda _: 600, Budget.read(budget))
    for name in asked:
        assert list(values.portions([name])) == [{name: name.upper()}]
    assert (values.hits, values.misses) == (hits, len(asked) - hits)
    assert values.size == 600 * len(kept)
    assert sum(map(len, values.portions(kept))) == len(kept) and values.hits == hits + len(kept)


def test_no_more_is_held_at_once_than_the_budget() -> None:
    values = Recency(str.upper, lambda _: 1, Budget.read(2))
    sizes = [(len(portion), len(values)) for portion in values.portions("abcde")]
    assert [size for size, _ in sizes] == [2, 2, 1]
    assert max(kept for _, kept in sizes) <= 3  # and the one that did not fit any more


@pytest.mark.parametrize("value", ["0", "-1", "many", "64 pounds", "", 0])
def test_a_budget_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected an amount of memory such as 64MiB"):
        Budget.read(value)


def test_a_budget_changes_nothing_but_memory(published: Published) -> None:
    merge = open_folder(published.folder)
    examples = [(task, picture(n)) for n in range(3) for task in reversed(merge.tasks)]
    whole, small = Engine(merge), Engine(merge, tint_memory=1, batch_size=5)
    for one, other in zip(whole.answer(examples), small.answer(examples), strict=True):
        assert not isinstance(one, Exception) and not isinstance(other, Exception)
        assert (one.task, one.label) == (other.task, other.label)
        assert one.values == pytest.approx(other.values, abs=1e-5)
    assert whole.tints == {**whole.tints, "tasks": 4, "misses": 4, "hits": 0}
    assert small.tints["tasks"] == 1 and small.tints["bytes"] < whole.tints["bytes"] / 2


class Lookup(nn.Module):
    """Adds a table of one row for all examples: to each, or the first one's to all."""

    def __init__(self, *, to_each: bool) -> None:
        super().__init__()
        self.table, self._to_each = nn.Parameter(torch.randn(1, 3, 4)), to_each

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given + (self.table if self._to_each else self.table[:1])


@pytest.mark.parametrize("to_each", [True, False])
def test_tables_are_stacked_where_that_gives_the_same(to_each: bool) -> None:
    """A module that reads one row of its table alone is run once for each task."""
    segments = BatchSegments(stacked=True)
    made = PerTaskProducts("x", Lookup(to_each=to_each), segments, {"table": "x.table"})
    layers = [
        TintLayer(str(n), {f"x.table{UP}": torch.randn(3, 2), f"x.table{DOWN}": torch.randn(2, 4)},
                  {}) for n in range(2)
    ]  # fmt: skip
    for sizes in ([2, 1], [1, 3], [3, 2]):
        segments.sizes, segments.layers = sizes, layers
        given = torch.randn(sum(sizes), 3, 4)
        products = [t.tensors[f"x.table{UP}"] @ t.tensors[f"x.table{DOWN}"] for t in layers]
        own = torch.cat([p.expand(n, 3, 4) for p, n in zip(products, sizes, strict=True)])
        assert torch.allclose(made(given), given + made.table + own, atol=1e-5)


def test_a_prompt_is_stacked(tiny: TinyZoo, tmp_path: Path) -> None:
    sites = {"sites": [{"site": "prompt", "rank": 2}, "head"]}
    api.run(tiny.spec(tmp_path, tint=sites, fit={"rounds": 2}))
    merge = tintray.load(tmp_path / "merges/tiny/v1")
    given = [(task, picture(n)) for task in merge.tasks for n in (0, 1)]
    batch = merge.processor("two")([Image.fromarray(image) for _, image in given[:2]],
                                   return_tensors="pt")  # fmt: skip
    for _ in range(2):  # the first time it is tried
        said = merge.predict_mixed(given)
        for number, one in enumerate(said):
            alone = merge.predict(one.task, dict(batch))[number % 2]
            assert one.values == pytest.approx(alone.numpy(), abs=1e-5)


def test_an_example_without_a_task_is_answered_as_its_own_task_does(
    published: Published, tiny: TinyZoo
) -> None:
    merge = tintray.load(published.folder)
    with np.load(tiny.folder / "five.npz") as data:
        known = [*data["x_test"][:20]]
    foreign = [np.indices((16, 16)).sum(0) % 2 * 255] * 2  # a chess board
    examples = [("auto", image) for image in (*known, *foreign)]
    routed = merge.predict_mixed([("three", picture()), *examples])[1:]
    for answer, (_, image) in zip(routed, examples, strict=True):
        assert answer.route is not None
        if answer.task == "unknown":
            assert answer.label is answer.values is answer.route.task is None
            continue
        assert answer.task == answer.route.task
        (alone,) = merge.predict(answer.task, [image])
        assert answer.label == alone.label
    assert sum(answer.task == "five" for answer in routed) > 10
    assert [answer.to_json()["route"]["task"] for answer in routed[20:]] == ["unknown"] * 2


def test_an_image_may_come_in_any_form(published: Published) -> None:
    merge, image = tintray.load(published.folder), picture()
    forms = [image, png(image), Image.fromarray(image), image.tolist(), image / 255]
    said = merge.predict("three", forms)
    assert len({one.label for one in said}) == 1
    for one in said[1:]:
        assert one.values == pytest.approx(said[0].values, abs=1e-6)
    document = said[0].to_json()
    assert document["version"] == "tiny/v1" and document["task"] == "three"
    assert document["confidence"] == pytest.approx(max(np.exp(document["values"]))
                                                   / sum(np.exp(document["values"])))  # fmt: skip


@pytest.mark.parametrize(
    ("task", "value", "sentence"),
    [
        ("thre", picture(), r"has no task 'thre' \(did you mean 'three'"),
        ("three", "a text", "expected an image .*, found a text"),
        ("three", b"\x89PNG\r\n\x1a\n and no more", "the image cannot be read"),
        ("three", png(picture())[:-60], "the image cannot be read"),
        ("three", np.zeros((16, 16, 7), np.uint8), r"uint8 \[1, 16, 16, 7\]"),
        ("three", np.full((16, 16, 3), 300.5), "expected uint8 images"),
        ("three", [[1, 2], [3]], "the image cannot be read"),
        ("three", {"a": 1}, "the image cannot be read|expected uint8"),
        ("three", np.zeros((0, 16, 3), np.uint8), "0 pixels"),
    ],
)
def test_what_is_wrong_with_an_example_is_said_and_the_others_are_answered(
    published: Published, task: str, value: Any, sentence: str
) -> None:
    merge = tintray.load(published.folder)
    good = ("two", picture())
    with pytest.raises(InputError, match=f"^example 1 .*{sentence}"):
        merge.predict_mixed([good, (task, value)])
    bad, said = Engine(merge).answer([(task, value), good])
    assert isinstance(bad, InputError) and "\n" not in str(bad)
    assert not isinstance(said, Exception) and said.task == "two"
    if task == "thre":
        assert isinstance(bad, NotFoundError)


@pytest.mark.parametrize(
    ("form", "value", "sentence"),
    [
        ("text", "x" * 101, "101 characters, and a text may have 100"),
        ("text", 7, "expected a text, or a pair of texts, found int"),
        ("text", ["a", "b", "c"], "expected a text, or a pair"),
        ("text", "\ud800", "half of a surrogate pair"),
        ("words", "one two", "expected a list of words, found str"),
        ("words", ["one", 2], "expected a list of words"),
    ],
)
def test_texts_that_are_none(form: Any, value: Any, sentence: str) -> None:
    kind = find_kind("classification")
    (error,) = Preparation(None, kind, form, max_characters=100).prepare([value])
    assert sentence in str(error)


def test_classes_have_the_names_that_the_expert_gives_them() -> None:
    named = {"id2label": {"0": "cat", "1": "dog"}}
    assert class_names(named, 2) == ["cat", "dog"]
    assert class_names({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, 2) is None
    reader = Reader("pets", "x/v1", find_kind("multi_label"), class_names(named, 2))
    (said,) = reader.rows(torch.tensor([[-1.0, 2.0]]), [None])
    assert said.label == ["dog"] and said.to_json()["values"] == [-1.0, 2.0]


def test_a_tint_of_another_merge_is_refused(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = open_folder(published.folder)
    engine = Engine(merge)
    monkeypatch.setattr(merge, "tint", lambda task: {"vit.other": np.zeros(1)})
    (found,) = engine.answer([("five", picture())])
    assert "are not of one merge: only one has" in str(found)
    monkeypatch.undo()
    bad, good = Engine(merge), [("two", picture()), ("three", picture())]
    own = merge.tint
    monkeypatch.setattr(merge, "tint", lambda task: {} if task == "five" else own(task))
    said = bad.answer([good[0], ("five", picture()), good[1]])
    assert isinstance(said[1], IntegrityError)
    assert [one.task for one in said if not isinstance(one, Exception)] == ["two", "three"]
