"""Text models as people have them: encoders for texts and for tokens, causal models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tintray
from jobs import api
from tests import tiny_models as tiny

BERT = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def encoded(words: list[list[str]], tokenizer: Any = None) -> dict[str, torch.Tensor]:
    texts = [" ".join(row) for row in words]
    return dict((tokenizer or tiny.tokenizer())(texts, padding=True, return_tensors="pt"))


def holds(word: str, row: list[str]) -> int:
    return int(any(int(w[1:]) % 4 == int(word) for w in row[:2]))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks about the same words: the first one's remainder by three, and its half."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    rules = {"thirds": lambda n: n % 3, "halves": lambda n: int(n >= 20)}
    tasks: dict[str, Any] = {}
    for seed, (name, rule) in enumerate(rules.items()):
        for split, count in (("train", 48), ("test", 40)):
            # the tasks' texts differ in length, so that a fused batch has to be padded
            words = tiny.sentences(count, 10 * seed + len(split), longest=6 + 6 * seed)
            labels = [rule(int(row[0][1:])) for row in words]
            rows = [{"text": " ".join(w), "label": y} for w, y in zip(words, labels, strict=True)]
            tiny.save_rows(folder / f"{name}_{split}.jsonl", rows)
            if split == "train":
                batch = encoded(words) | {"labels": torch.tensor(labels)}
                tasks[name] = (3 - seed, batch)
    tiny.experts(
        folder,
        lambda labels: BertForSequenceClassification(BertConfig(**BERT, num_labels=labels)),
        tasks,
        tiny.tokenizer(),
        keep=lambda name: not name.startswith("classifier"),
    )
    return folder


@pytest.mark.parametrize("site", ["head", "bert.encoder.layer.1", "auto"])
def test_sequence_classification(classifiers: Path, tmp_path: Path, site: str) -> None:
    spec = tiny.job(
        classifiers,
        {"thirds": "classification", "halves": "classification"},
        tint={"site": site},
        store=str(tmp_path / "store"),
    )
    summary = api.run(spec)
    assert summary.normalised_accuracy > 0.6
    assert [task.metric for task in summary.tasks] == ["accuracy", "accuracy"]
    merge = tintray.load(summary.url)
    batch = encoded(tiny.sentences(5, 99))
    tiny.check_export(merge, "thirds", tmp_path, batch)
    card = (tmp_path / "exported-thirds" / "README.md").read_text()
    assert "| thirds | classification | accuracy |" in card
    whole = tmp_path / "whole"
    api.export(summary.url, None, whole, store=spec.store, catalog=spec.catalog)
    for task in merge.tasks:
        one, other = (m.for_task(task)(**batch).logits for m in (merge, tintray.load(str(whole))))
        assert torch.equal(one, other)
    assert "halves" in (whole / "README.md").read_text()
    again = api.evaluate(summary.url, store=spec.store, catalog=spec.catalog)
    assert [task.merged for task in again.tasks] == [task.merged for task in summary.tasks]


def test_labels_of_a_pool_are_never_read(classifiers: Path, tmp_path: Path) -> None:
    """Scrambled, removed or nonsense labels in the adaptation pool give the same merge."""
    digests = []
    for number, label in enumerate((None, "nonsense", -7)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in classifiers.iterdir():
            if path.name != "store":
                (folder / path.name).symlink_to(path)
        for name in ("thirds", "halves"):
            if label is not None:
                lines = (classifiers / f"{name}_train.jsonl").read_text().splitlines()
                import json

                rows = [json.loads(line) | {"label": label} for line in lines]
                (folder / f"{name}_train.jsonl").unlink()
                tiny.save_rows(folder / f"{name}_train.jsonl", rows)
        kinds = {"thirds": "classification", "halves": "classification"}
        spec = tiny.job(folder, kinds, fit={"rounds": 3})
        manifest = tintray.load(api.run(spec).url).manifest
        digests.append({name: ref["sha256"] for name, ref in manifest["files"].items()})
    assert digests[0] == digests[1] == digests[2]


def test_token_classification(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForTokenClassification

    rules = {"thirds": lambda n: n % 3, "halves": lambda n: int(n >= 20)}
    tasks: dict[str, Any] = {}
    for seed, (name, rule) in enumerate(rules.items()):
        for split in ("train", "test"):
            words = tiny.sentences(40, 10 * seed + len(split))
            labels = [[rule(int(w[1:])) for w in row] for row in words]
            rows = [{"tokens": w, "tags": y} for w, y in zip(words, labels, strict=True)]
            tiny.save_rows(tmp_path / f"{name}_{split}.jsonl", rows)
            if split == "train":
                batch = encoded(words)
                target = torch.full_like(batch["input_ids"], -100)
                for row, tags in enumerate(labels):
                    target[row, 1 : 1 + len(tags)] = torch.tensor(tags)
                tasks[name] = (3 - seed, batch | {"labels": target})
    tiny.experts(
        tmp_path,
        lambda labels: BertForTokenClassification(BertConfig(**BERT, num_labels=labels)),
        tasks,
        tiny.tokenizer(),
        keep=lambda name: not name.startswith("classifier"),
    )
    kinds = dict.fromkeys(rules, "token_classification")
    spec = tiny.job(tmp_path, kinds, tint={"site": "auto"})
    summary = api.run(spec)
    assert summary.site in ("head", "bert.encoder.layer.0", "bert.encoder.layer.1")
    assert min(task.expert or 0 for task in summary.tasks) > 0.8
    assert summary.normalised_accuracy > 0.85
    assert all((task.calibration or {})["merged"]["ece"] < 0.5 for task in summary.tasks)
    tiny.check_export(tintray.load(summary.url), "halves", tmp_path, encoded(tiny.sentences(4, 7)))


def causal(kind: str, tied: bool) -> Any:
    import transformers

    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=tiny.VOCABULARY,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            tie_word_embeddings=tied,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
        return transformers.GPT2LMHeadModel(config)
    sizes = {
        "vocab_size": tiny.VOCABULARY if kind == "llama" else 400,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
    }
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))


CAUSAL = [
    ("gpt2", True, "transformer.h.1"),
    ("llama", False, "head"),
    ("qwen2", True, "model.layers.1"),
]


@pytest.mark.parametrize(("kind", "tied", "site"), CAUSAL, ids=[case[0] for case in CAUSAL])
def test_causal_models(tmp_path: Path, kind: str, tied: bool, site: str) -> None:
    """Two rules of how words follow each other; what is tied stays tied."""
    names = ["input_ids", "attention_mask"]
    processor = tiny.byte_level() if kind == "qwen2" else tiny.tokenizer(model_input_names=names)
    tasks: dict[str, Any] = {}
    for seed, (name, step) in enumerate({"up": 1, "down": -3}.items()):
        for split in ("train", "test"):
            random = torch.Generator().manual_seed(seed + len(split))
            starts = torch.randint(40, (32,), generator=random).tolist()
            lengths = torch.randint(4, 9 + 4 * seed, (32,), generator=random).tolist()
            words = [
                [f"w{(a + step * n) % 40}" for n in range(k)]
                for a, k in zip(starts, lengths, strict=True)
            ]
            tiny.save_rows(
                tmp_path / f"{name}_{split}.jsonl", [{"text": " ".join(row)} for row in words]
            )
            if split == "train":
                batch = encoded(words, processor)
                labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
                tasks[name] = (0, batch | {"labels": labels})
    tiny.experts(tmp_path, lambda _: causal(kind, tied), tasks, processor, steps=100, lr=1e-2)
    spec = tiny.job(
        tmp_path,
        dict.fromkeys(tasks, "language_modelling"),
        tint={"site": site},
        fit={"rounds": 40},
    )
    summary = api.run(spec)
    assert min(task.expert or 0 for task in summary.tasks) > 0.3
    assert summary.normalised_accuracy > 0.6
    merge = tintray.load(summary.url)
    module = merge.for_task("up")
    same = module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert same == tied
    tiny.check_export(merge, "up", tmp_path, encoded(tiny.sentences(3, 5), processor))


def test_a_tied_head_is_no_site(tmp_path: Path) -> None:
    from tintray.errors import SpecError
    from tintray.models import head_modules, resolve_site

    module = causal("gpt2", tied=True)
    assert head_modules(module) == ()
    with pytest.raises(SpecError, match=r"head of GPT2LMHeadModel is tied .*'transformer\.h\.1'"):
        resolve_site(module, "head")
    with pytest.raises(SpecError, match=r"'transformer\.wte' holds .* tied"):
        resolve_site(module, "transformer.wte")
