"""Modules that live in this process are merged as their files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

import tintray
from tests import tiny_models as tiny
from tests.tiny_zoo import CLASSES, TinyZoo

FIT = {"rounds": 3, "batch_size": 8, "precision": "float32"}


def bits(merge: tintray.Merge) -> dict[str, str]:
    return {name: file.sha256 for name, file in merge.manifest.files.items()
            if name.endswith(".safetensors")}  # fmt: skip


@pytest.fixture(scope="module")
def models(tiny: TinyZoo) -> dict[str, Any]:
    names = ("base", "two", "three")
    return {n: AutoModelForImageClassification.from_pretrained(tiny.folder / n) for n in names}


def arrays(tiny: TinyZoo, task: str) -> dict[str, Any]:
    with np.load(tiny.folder / f"{task}.npz") as file:
        return {"pool": torch.from_numpy(file["x_train"]),
                "test": (file["x_test"], torch.from_numpy(file["y_test"]))}  # fmt: skip


def test_models_of_transformers(tiny: TinyZoo, models: Mapping[str, Any], tmp_path: Path) -> None:
    experts = {name: models[name] for name in ("two", "three")}
    processors = {n: AutoImageProcessor.from_pretrained(tiny.folder / n) for n in experts}
    data = {name: arrays(tiny, name) for name in experts}
    merge = tintray.merge(models["base"], experts, data, processor=processors, fit=FIT)
    spec = tiny.spec(tmp_path / "store", tasks=tuple(experts), fit=FIT)
    assert bits(merge) == bits(tintray.run(spec))
    logits = merge.for_task("two")(pixel_values=torch.zeros(1, 3, 16, 16)).logits
    assert logits.shape == (1, CLASSES["two"])
    folder = merge.held.name  # type: ignore[attr-defined]
    assert Path(folder).is_dir()
    del merge
    assert not Path(folder).exists()


class Net(nn.Module):
    """A plain module, which no factory that can be imported builds."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(x))
        return found


def perceptrons() -> tuple[Net, dict[str, Net], dict[str, Any]]:
    torch.manual_seed(0)
    base, experts = Net(2), {"one": Net(2), "other": Net(3)}
    random = np.random.default_rng(0)
    data = {}
    for name, expert in experts.items():
        for own, shared in zip(expert.body.parameters(), base.body.parameters(), strict=True):
            own.data = shared.data + 0.01 * torch.randn_like(shared)
        data[name] = random.integers(0, 256, (30, 4, 4, 3), np.uint8)
    return base, experts, data


def test_modules_of_any_kind(tmp_path: Path) -> None:
    base, experts, data = perceptrons()
    merge = tintray.merge(base, experts, data, folder=tmp_path, fit=FIT, name="nets")
    images = torch.rand(2, 3, 4, 4)
    assert merge.for_task("other")(images).shape == (2, 3)
    assert tintray.load(tmp_path / "store/merges/nets/v1").predict("one", {"x": images}).shape == (
        2,
        2,
    )
    base_again = load_file(tmp_path / "base/model.safetensors")
    assert all(torch.equal(tensor, base_again[name]) for name, tensor in base.state_dict().items())


def test_texts_with_their_tokenizer() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    def model() -> Any:
        torch.manual_seed(1)
        return BertForSequenceClassification(BertConfig(
            vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32))  # fmt: skip

    texts = [" ".join(words) for words in tiny.sentences(20, 3)]
    experts = {"a": model(), "b": model()}
    experts["b"].bert.pooler.dense.weight.data += 0.01
    data = {
        "a": texts,
        "b": {"pool": texts, "test": (texts[:4], [0, 1, 0, 1]), "kind": "classification"},
    }
    merge = tintray.merge(
        model(), experts, data, processor=tiny.tokenizer(), merge={"method": "average"}
    )
    assert merge.tasks == ("a", "b") and merge.processor("a")(["w1 w2"])["input_ids"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b, e, d: (b, e, {"one": d["one"]}), "task 'other' has no data"),
        (lambda b, e, d: ("base", e, d), r"base: expected a torch.nn.Module, found a str"),
        (lambda b, e, d: (b, e | {"one": nn.Linear(3, 2)}, d), "expert|tensor"),
        (lambda b, e, d: (b, e, d | {"one": torch.rand(9, 3)}), r"data.one.pool: expected images"),
        (lambda b, e, d: (b, e, d | {"one": torch.randn(9, 3, 4, 4)}), "one.*float32"),
        (lambda b, e, d: (b, e, d | {"one": {"input_ids": [[1]]}}), r"data.one.pool: .* a dict"),
        (lambda b, e, d: (b, e, d | {"one": {"pool": d["one"], "test": d["one"]}}), "a pair"),
        (lambda b, e, d: (b, e, d | {"one": {"pool": d["one"], "test": (d["one"], [1])}}), "30 ex"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_refused_in_a_sentence(change: Any, words: str) -> None:
    with pytest.raises(tintray.InputError, match=words) as refusal:
        tintray.merge(*change(*perceptrons()), fit=FIT)
    assert "\n" not in str(refusal.value)
