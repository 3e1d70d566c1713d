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

WEIGHTS = "model.safetensors"
CONFIG, HEAD = "config.json", "lm_head.weight"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``base``, ``a`` and ``b``: Llamas, whose file of ``b`` is the one to be spoilt."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "a", "b"):
        random = torch.Generator().manual_seed(ord(name[0]))
        tensors = {n: torch.randn(s, generator=random) for n, s in peers.shapes(4)}
        peers.save(tensors, tmp_path / name, 4)
    return tmp_path


def config(**fields: Any) -> Callable[[Path], None]:
    def change(b: Path) -> None:
        known = json.loads((b / CONFIG).read_text())
        (b / CONFIG).write_text(json.dumps(known | fields))

    return change


def everywhere(**fields: Any) -> Callable[[Path], None]:
    """The same fields in the base, other labels in b."""

    def change(b: Path) -> None:
        for name in ("base", "a", "b"):
            config(**fields)(b.parent / name)
        labels = {"0": "bad", "1": "good"}
        config(id2label=labels, label2id={v: int(k) for k, v in labels.items()})(b)

    return change


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def changed(b: Path) -> None:
        found = load_file(b / WEIGHTS)
        change(found)
        save_file(found, b / WEIGHTS, metadata={"format": "pt"})

    return changed


def tokens(b: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "red", "green", "blue"]
    for name, order in (("base", words), ("a", words), ("b", [words[0], *reversed(words[1:])])):
        vocabulary = {word: number for number, word in enumerate(order)}
        made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(
            b.parent / name
        )


def index(*names: str) -> Callable[[Path], None]:
    def change(b: Path) -> None:
        placed = dict(zip(load_file(b / WEIGHTS), names * 99, strict=False))
        (b / WEIGHTS).rename(b.parent / "outside.safetensors")
        written = {"metadata": {"total_size": 1}, "weight_map": placed}
        (b / f"{WEIGHTS}.index.json").write_text(json.dumps(written))

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
    for name, tensor in found.items():
        if "q_proj" in name:
            found[name] = (tensor.abs() * 10).to(torch.uint8)


QUANTISED = {"quant_method": "bitsandbytes", "load_in_4bit": True}
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "heads": (config(num_attention_heads=4), "head"),
    "activation": (config(hidden_act="relu"), "hidden_act"),
    "rotary base": (config(rope_theta=1e6), "rope"),
    "another class": (config(architectures=["MistralForCausalLM"], model_type="mistral"), "b"),
    "labels": (everywhere(id2label={"0": "good", "1": "bad"}), "class 0"),
    "tokens": (tokens, "token '"),
    "codes for weights": (tensors(codes), "U8"),
    "quantised codes": (
        lambda b: (tensors(codes)(b), config(quantization_config=QUANTISED)(b)),
        "quantised",
    ),
    "a tensor missing": (tensors(lambda t: t.pop("model.norm.weight")), "model.norm.weight"),
    "a tensor more": (tensors(lambda t: t.update(more=torch.zeros(1))), "'more'"),
    "another shape": (
        tensors(lambda t: t.update({"lm_head.weight": torch.zeros(3, 16)})),
        "[3, 16]",
    ),
    "not a number": (tensors(lambda t: t[HEAD].fill_(float("nan"))), "NaN"),
    "cut short": (lambda b: os.truncate(b / WEIGHTS, 999), WEIGHTS),
    "grown": (lambda b: (b / WEIGHTS).write_bytes((b / WEIGHTS).read_bytes() + b"x"), WEIGHTS),
    "text": (lambda b: (b / WEIGHTS).write_text("x" * 99), WEIGHTS),
    "a folder for weights": (lambda b: ((b / WEIGHTS).unlink(), (b / WEIGHTS).mkdir()), WEIGHTS),
    "no weights": (lambda b: (b / WEIGHTS).unlink(), WEIGHTS),
    "a pipe": (lambda b: ((b / WEIGHTS).unlink(), os.mkfifo(b / WEIGHTS)), WEIGHTS),
    "a link outside": (linked, "outside"),
    "shards outside": (index("../outside.safetensors"), "outside.safetensors"),
    "absolute shards": (index("/etc/passwd"), "/etc/passwd"),
    "shards that are numbers": (
        lambda b: (b / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": 1}}'),
        "index",
    ),
    "two models in one folder": (
        lambda b: (b / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "b"}}'),
        "index",
    ),
    "no configuration": (lambda b: (b / CONFIG).unlink(), CONFIG),
    "deep configuration": (lambda b: (b / CONFIG).write_text("[" * 99999), CONFIG),
    "a list for a configuration": (lambda b: (b / CONFIG).write_text("[]"), CONFIG),
    "bytes for a configuration": (
        lambda b: (b / CONFIG).write_bytes(b"\xff"),
        CONFIG,
    ),
    "an adapter": (adapter, "adapter"),
}


@pytest.mark.parametrize("by", ["merge", "recipe"])
@pytest.mark.parametrize(("spoil", "word"), CASES.values(), ids=CASES.keys())
def test_a_model_that_does_not_go_with_the_others_is_refused_in_a_sentence(
    folder: Path, spoil: Any, word: str, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder / "b")
    (folder / "r.yml").write_text(
        "models: [{model: a}, {model: b}]\nmerge_method: task_arithmetic\nbase_model: base\n"
        "parameters: {weight: 0.5}"
    )
    words = {
        "merge": ["merge", "--base", "base", "--method", "task_arithmetic", "a", "b"],
        "recipe": ["run", "--from-mergekit", "r.yml"],
    }
    assert main([*words[by], "--output", "out"]) == 2
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


@pytest.mark.parametrize("method", ["average", "model_stock"])
@pytest.mark.parametrize("has", ["base", "b"])
def test_buffers_of_old_models_are_no_hindrance(folder: Path, method: str, has: str) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors(lambda of: of.update({name: torch.ones(4)}))(folder / has)
    assert main(["merge", "--base", "base", "--method", method, "--output", "out", "a", "b"]) == 0
    assert (name in load_file(folder / "out" / WEIGHTS)) == (has == "base")


def test_whole_numbers_must_agree(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("base", "a", "b"):
        number = torch.tensor([1 + (name == "b")])
        tensors(lambda of, number=number: of.update(count=number))(folder / name)  # type: ignore[misc]
    assert main(["merge", "--base", "base", "--method", "average", "--output", "out", "a"]) == 0
    args = ["merge", "--base", "base", "--method", "average", "--output", "other", "a", "b"]
    assert main(args) == 2
    assert "tensor 'count' holds whole numbers, and others than the base" in capsys.readouterr().err
