"""LoRA adapters: what we read equals what PEFT computes; factors stay factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

import tintray
from tests import tiny_models as tiny
from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import CheckpointError, InputError, IntegrityError
from tintray.jobs import api
from tintray.jobs.cli import main
from tintray.models.adapters import read_adapter, task_vector
from tintray.models.calling import answer
from tintray.models.loading import load_base, load_expert
from tintray.models.structure import backbone_names
from tintray.numerics.low_rank import LowRank

peft = pytest.importorskip("peft")

BERT = {"vocab_size": tiny.VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
BERT |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}
PLAIN = {"r": 3, "lora_alpha": 5, "target_modules": ["query", "value"]}
SETTINGS = {
    "plain": PLAIN,
    "rank stabilised": PLAIN | {"use_rslora": True},
    "patterns": PLAIN
    | {
        "target_modules": ["query", "dense"],
        "rank_pattern": {"layer.0.attention.self.query": 2, "intermediate.dense": 4},
        "alpha_pattern": {"layer.1.*query": 7},
    },
    "biases": PLAIN | {"bias": "lora_only"},
    "embeddings": PLAIN | {"target_modules": ["word_embeddings", "key"]},
}


def make_base(folder: Path) -> None:
    torch.manual_seed(0)
    BertModel(BertConfig(**BERT)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def saved(module: Any, folder: Path, **settings: Any) -> Any:
    """A PEFT model with random factors and head, saved."""
    model: Any = peft.get_peft_model(module, peft.LoraConfig(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model.eval()


def adapted(tmp_path: Path, **settings: Any) -> tuple[Any, ModelFolder]:
    """Such a model of a small BERT, and its folder as we open it."""
    make_base(tmp_path / "base")
    module = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    model = saved(module, tmp_path / "adapter", task_type="SEQ_CLS", **settings)
    base = open_model_folder(tmp_path / "base", role="base")
    return model, open_model_folder(tmp_path / "adapter", role="tasks.x.expert", base=base)


def inputs() -> dict[str, torch.Tensor]:
    return tiny.encoded(tiny.sentences(5, 3))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_adapter_is_what_peft_makes_of_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The expert answers alike, and its task vector stays a product."""
    model, checkpoint = adapted(tmp_path, **settings)
    expert: Any = load_expert(checkpoint)
    assert expert.config.num_labels == 3
    with torch.inference_mode():
        expected = model(**inputs()).logits
        assert torch.allclose(answer(expert, inputs()), expected, atol=1e-5)
    base = load_base(open_model_folder(tmp_path / "base"), like=checkpoint)
    names = backbone_names(base)
    vector = task_vector(read_adapter(checkpoint, base, "x", with_head=False), base, names)
    products = {name: row for name, row in vector.items() if isinstance(row, LowRank)}
    assert all(name.endswith("bias") for name in vector.keys() - products.keys())
    ranks = {row.up.shape[1] for row in products.values()}
    assert ranks == {settings["r"], *settings.get("rank_pattern", {}).values()}
    for name in names:
        difference = expert.get_parameter(name) - base.get_parameter(name)
        row = vector.get(name, 0 * difference)
        found = row.dense().view_as(difference) if isinstance(row, LowRank) else row
        assert torch.allclose(found, difference, atol=1e-6)


def test_a_transposed_layer_and_a_tied_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": tiny.VOCABULARY, "n_positions": 16, "n_embd": 16}
    base = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, **sizes))
    base.save_pretrained(tmp_path / "base")
    settings = {"r": 2, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    model = saved(base, tmp_path / "adapter", task_type="CAUSAL_LM", **settings)
    opened = open_model_folder(tmp_path / "base")
    expert = load_expert(open_model_folder(tmp_path / "adapter", base=opened))
    ids = torch.randint(4, 40, (3, 7))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        assert torch.allclose(answer(expert, {"input_ids": ids}), expected, atol=1e-5)


def narrow(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(n for n in tensors if n.endswith("query.lora_A.weight"))
    return tensors | {name: tensors[name][:, :8].contiguous()}


def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace(".query.", ".querry."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (narrow, r"query\.weight' by a product \[16, 8\]; the base has \[16, 16\]"),
        (rename, r"'bert\.encoder\.layer\.0\.attention\.self\.querry', which the base"),
    ],
)
def test_factors_that_do_not_fit_are_refused(tmp_path: Path, damage: Any, words: str) -> None:
    adapted(tmp_path, **PLAIN)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(damage(load_file(path)), path)
    base = open_model_folder(tmp_path / "base")
    with pytest.raises(CheckpointError, match=words):
        load_expert(open_model_folder(tmp_path / "adapter", base=base), "tasks.x.expert")


def test_adapters_of_different_ranks_are_merged(tmp_path: Path) -> None:
    """Two tasks, one base, ranks 2 and 5: the artifact in the store holds factors only."""
    make_base(tmp_path / "base")
    rules = {"thirds": (3, 2, lambda n: n % 3), "halves": (2, 5, lambda n: int(n >= 20))}
    for seed, (name, (classes, rank, rule)) in enumerate(rules.items()):
        module = BertForSequenceClassification.from_pretrained(
            tmp_path / "base", num_labels=classes
        )
        settings = {"r": rank, "lora_alpha": 8, "target_modules": ["query", "value", "dense"]}
        model = peft.get_peft_model(module, peft.LoraConfig(task_type="SEQ_CLS", **settings))
        for split in ("train", "test"):
            words = tiny.sentences(40, 10 * seed, longest=6)
            labels = [rule(int(row[0][1:])) for row in words]
            rows = [{"text": " ".join(w), "label": y} for w, y in zip(words, labels, strict=True)]
            tiny.save_rows(tmp_path / f"{name}_{split}.jsonl", rows)
            if split == "train":
                batch = tiny.encoded(words) | {"labels": torch.tensor(labels)}
                tiny.train(model, lambda _, batch=batch: batch, 60, 1e-2)
        model.save_pretrained(tmp_path / name)
    spec = tiny.job(
        tmp_path, dict.fromkeys(rules, "classification"), fit={"rounds": 60, "correction_lr": 0}
    )
    summary = api.run(spec)
    assert summary.normalised_accuracy > 0.7
    merge = tintray.load(summary.url)
    store = Path(str(spec.store).removeprefix("file://"))
    digest = merge.task("thirds").task_vector
    (blob,) = (path for path in store.rglob(f"*{digest}*") if path.is_file())
    assert all(".low_rank." in name for name in load_file(blob))
    tiny.check_export(merge, "thirds", tmp_path, inputs())
    _check_adapters(spec, summary.url, tmp_path)


def _check_adapters(spec: Any, url: str, folder: Path) -> None:
    """The same merge as one adapter for PEFT, and as one for all tasks plus their tints."""
    merge = tintray.load(url)
    where = {"store": spec.store, "catalog": spec.catalog, "adapter": True}
    one = api.export(url, "thirds", folder / "one", **where)
    base = BertForSequenceClassification.from_pretrained(folder / "base", num_labels=3)
    loaded = peft.PeftModel.from_pretrained(base, one).eval()
    everything = folder / "all"
    place = ["--store", str(spec.store), "--catalog", str(spec.catalog)]
    assert main(["export", url, str(everything), "--adapter", *place]) == 0
    assert not (everything / "backbone.safetensors").exists()
    shared = load_file(everything / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in shared.items() if "lora_A" in name} == {7}  # 2 + 5
    again = tintray.load(str(everything))
    opened = open_model_folder(one, base=open_model_folder(folder / "base"))
    with torch.inference_mode():
        expected = merge.for_task("thirds")(**inputs()).logits
        assert torch.allclose(loaded(**inputs()).logits, expected, atol=1e-5)
        found = answer(load_expert(opened), inputs())
        assert torch.allclose(found, expected, atol=1e-5)
        for task in merge.tasks:
            expected = merge.for_task(task)(**inputs()).logits
            assert torch.allclose(again.for_task(task)(**inputs()).logits, expected, atol=1e-5)
    config = folder / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layer_norm_eps": 1e-3}))
    with pytest.raises(IntegrityError, match=r"base is not the base that .* belongs to"):
        tintray.load(str(everything)).for_task("thirds")


def test_a_merge_of_whole_models_is_no_adapter(published: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a merge of LoRA adapters"):
        api.export(published.summary.url, None, tmp_path / "all", adapter=True)
