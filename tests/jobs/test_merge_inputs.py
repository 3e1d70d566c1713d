"""``tintray merge`` and recipes take models of one meaning, or end in one sentence and code 2."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import peers
from tintray.jobs.cli import main
from tintray.merging import methods

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
HEAD = "lm_head.weight"
RECIPE = (
    "models: [{model: a}, {model: b}]\nmerge_method: task_arithmetic\nbase_model: base\n"
    "parameters: {weight: 0.5}"
)
WAYS = {
    "merge": ["merge", "--base", "base", "--method", "task_arithmetic", "a", "b"],
    "recipe": ["run", "--from-mergekit", "r.yml"],
}

Spoil = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``base``, ``a`` and ``b``: Llamas, whose file of ``b`` is the one to be spoilt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yml").write_text(RECIPE)
    for name in ("base", "a", "b"):
        random = torch.Generator().manual_seed(ord(name[0]))
        tensors = {n: torch.randn(s, generator=random) for n, s in peers.shapes(4)}
        peers.save(tensors, tmp_path / name, 4)
    return tmp_path


def merge(by: str, output: str = "out") -> int:
    return main([*WAYS[by], "--output", output])


def config(**fields: Any) -> Spoil:
    def change(b: Path) -> None:
        known = json.loads((b / CONFIG).read_text())
        (b / CONFIG).write_text(json.dumps(known | fields))

    return change


def labels(b: Path) -> None:
    for name, order in (("base", ["good", "bad"]), ("a", ["good", "bad"]), ("b", ["bad", "good"])):
        config(id2label=dict(enumerate(order)), label2id={v: k for k, v in enumerate(order)})(
            b.parent / name
        )


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Spoil:
    def changed(b: Path) -> None:
        found = load_file(b / WEIGHTS)
        change(found)
        save_file(found, b / WEIGHTS, metadata={"format": "pt"})

    return changed


def tokens(b: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    for name, words in (("base", "red green"), ("a", "red green"), ("b", "green red")):
        vocabulary = {word: number for number, word in enumerate(["[UNK]", *words.split()])}
        made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(
            b.parent / name
        )


def index(shard: str) -> Spoil:
    def change(b: Path) -> None:
        placed = dict.fromkeys(load_file(b / WEIGHTS), shard)
        (b / WEIGHTS).rename(b.parent / "outside.safetensors")
        (b / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))

    return change


def linked(b: Path) -> None:
    (b / WEIGHTS).rename(b.parent / "outside.safetensors")
    (b / WEIGHTS).symlink_to(b.parent / "outside.safetensors")


def adapter(b: Path) -> None:
    (b / WEIGHTS).unlink()
    (b / CONFIG).unlink()
    (b / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    save_file({"lora_A": torch.zeros(1)}, b / "adapter_model.safetensors")


def codes(found: dict[str, Tensor]) -> None:
    found |= {n: (t.abs() * 10).to(torch.uint8) for n, t in found.items() if "q_proj" in n}


def written(name: str, content: str | bytes) -> Spoil:
    raw = content.encode() if isinstance(content, str) else content
    return lambda b: (b / name).write_bytes(raw)


QUANTISED = {"quant_method": "bitsandbytes", "load_in_4bit": True}
CASES: dict[str, tuple[Spoil, str]] = {
    "heads": (config(num_attention_heads=4), "head"),
    "activation": (config(hidden_act="relu"), "hidden_act"),
    "rotary base": (config(rope_theta=1e6), "rope"),
    "another class": (config(architectures=["MistralForCausalLM"], model_type="mistral"), "b"),
    "labels": (labels, "class 0"),
    "tokens": (tokens, "token '"),
    "codes for weights": (tensors(codes), "U8"),
    "quantised codes": (
        lambda b: (tensors(codes)(b), config(quantization_config=QUANTISED)(b)),
        "quantised",
    ),
    "a tensor missing": (
        tensors(lambda t: t.pop("model.norm.weight")),
        "lacks tensor 'model.norm.weight', which",
    ),
    "a tensor more": (tensors(lambda t: t.update(more=torch.zeros(1))), "has tensor 'more', which"),
    "another shape": (
        tensors(lambda t: t.update({HEAD: torch.zeros(3, 16)})),
        f"tensor '{HEAD}' has shape [3, 16]; ",
    ),
    "not a number": (
        tensors(lambda t: t[HEAD][2].fill_(float("nan"))),
        f"tensor '{HEAD}' has 16 of 512 values that are NaN",
    ),
    "infinite": (tensors(lambda t: t[HEAD].fill_(float("inf"))), "or infinite"),
    "cut short": (lambda b: os.truncate(b / WEIGHTS, 999), WEIGHTS),
    "grown": (lambda b: (b / WEIGHTS).write_bytes((b / WEIGHTS).read_bytes() + b"x"), WEIGHTS),
    "text": (written(WEIGHTS, "x" * 99), WEIGHTS),
    "a folder for weights": (lambda b: ((b / WEIGHTS).unlink(), (b / WEIGHTS).mkdir()), WEIGHTS),
    "no weights": (lambda b: (b / WEIGHTS).unlink(), WEIGHTS),
    "a pipe": (lambda b: ((b / WEIGHTS).unlink(), os.mkfifo(b / WEIGHTS)), WEIGHTS),
    "a link outside": (linked, "outside"),
    "shards outside": (index("../outside.safetensors"), "outside.safetensors"),
    "absolute shards": (index("/etc/passwd"), "/etc/passwd"),
    "shards that are numbers": (written(INDEX, '{"weight_map": {"a": 1}}'), "index"),
    "two models in one folder": (written(INDEX, '{"weight_map": {"a": "b"}}'), "index"),
    "no configuration": (lambda b: (b / CONFIG).unlink(), CONFIG),
    "deep configuration": (written(CONFIG, "[" * 99999), CONFIG),
    "a list for a configuration": (written(CONFIG, "[]"), CONFIG),
    "bytes for a configuration": (written(CONFIG, b"\xff"), CONFIG),
    "an adapter": (adapter, "adapter"),
}


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize(("spoil", "word"), CASES.values(), ids=CASES.keys())
def test_a_model_that_does_not_go_with_the_others_is_refused_in_a_sentence(
    folder: Path, spoil: Spoil, word: str, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder / "b")
    assert merge(by) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert word in said
    assert not (folder / "out").exists()
    assert not list(folder.glob(".out*"))


EMPTY = {"w": torch.randn(3, 3), "e": torch.zeros(0, 4), "n": torch.arange(2)}


@pytest.mark.parametrize("method", [name for name, known in methods().items() if not known.needs])
def test_every_method_takes_an_empty_tensor(folder: Path, method: str) -> None:
    for name in ("base", "a", "b"):
        save_file(EMPTY | {"w": EMPTY["w"] + ord(name[0])}, folder / name / WEIGHTS)
        (folder / name / CONFIG).write_text("{}")
    assert main(["merge", "--base", "base", "--method", method, "--output", "out", "a", "b"]) == 0
    for path in (folder / "out").rglob(WEIGHTS):
        assert load_file(path)["e"].shape == (0, 4)


@pytest.mark.parametrize(
    ("by", "has", "kept"),
    [("merge", "base", 1), ("merge", "b", 0), ("recipe", "a", 1), ("recipe", "b", 0)],
)
def test_buffers_of_old_models_are_no_hindrance(folder: Path, by: str, has: str, kept: int) -> None:
    """They are the leading model's: in a recipe the first one that it lists."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors(lambda of: of.update({name: torch.ones(4)}))(folder / has)
    assert merge(by) == 0
    assert (name in load_file(folder / "out" / WEIGHTS)) == bool(kept)


@pytest.mark.parametrize("by", WAYS)
def test_whole_numbers_are_taken_over_where_all_models_agree(
    folder: Path, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"model.count": torch.arange(3), "model.none": torch.empty(0, 2)}
    for name in ("base", "a", "b"):
        tensors(lambda of: of.update(own))(folder / name)
    assert merge(by) == 0
    merged = load_file(folder / "out" / WEIGHTS)
    assert torch.equal(merged["model.count"], torch.arange(3))
    assert merged["model.none"].shape == (0, 2)
    tensors(lambda of: of.update({"model.count": torch.ones(3).long()}))(folder / "b")
    assert merge(by, "other") == 2
    said = capsys.readouterr().err
    assert "tensor 'model.count' holds whole numbers, and others than" in said
