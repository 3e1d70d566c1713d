"""Every family of models: ``for_task(x)`` is what the exported folder answers, to 1e-5.

The models here were never trained: what is checked is that their tensors, ties and buffers come
through a merge and an export, whatever the class calls them. The tests of single families train.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tintray
from tests import tiny_models as tiny
from tintray.jobs import api

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = SIZES | {
    "vocab_size": tiny.VOCABULARY,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CAUSAL = TEXT | {"num_key_value_heads": 1, "head_dim": 8}
IMAGE = SIZES | {"image_size": 16, "patch_size": 4}
PAIR = {
    "vocab_size": tiny.VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": 3,
}
DISTIL = {"vocab_size": tiny.VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
GPT2 = {"vocab_size": tiny.VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
T5 = {"vocab_size": tiny.VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}


@dataclass(frozen=True)
class Family:
    """A class of models, its configuration, its kind of task and where it is tinted."""

    model: str
    config: dict[str, Any] = field(default_factory=dict)
    kind: str = "classification"
    site: str = "head"
    texts: bool = True
    rank: int | None = None

    def make(self, labels: int) -> Any:
        cls = getattr(transformers, self.model)
        known = {} if self.kind in ("language_modelling", "seq2seq") else {"num_labels": labels}
        return cls(cls.config_class(**self.config, **known))


def pictures(model: str, site: str = "head", **config: Any) -> Family:
    return Family(model, config, site=site, texts=False)


def causal(model: str, site: str, tied: bool, **config: Any) -> Family:
    return Family(model, config | {"tie_word_embeddings": tied}, "language_modelling", site)


FAMILIES = {
    "vit": pictures("ViTForImageClassification", "vit.layers.1", **IMAGE),
    "beit": pictures("BeitForImageClassification", **IMAGE),
    "dinov2": pictures("Dinov2ForImageClassification", **IMAGE),
    "swin": pictures(
        "SwinForImageClassification",
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=2,
    ),
    "resnet": pictures("ResNetForImageClassification", embedding_size=8, **STAGES),
    "convnext": pictures("ConvNextForImageClassification", num_stages=2, patch_size=2, **STAGES),
    "bert": Family("BertForSequenceClassification", TEXT, site="bert.encoder.layer.1"),
    "roberta": Family("RobertaForSequenceClassification", TEXT),
    "distilbert": Family("DistilBertForSequenceClassification", DISTIL),
    "electra": Family("ElectraForSequenceClassification", TEXT | {"embedding_size": 8}),
    "albert": Family("AlbertForSequenceClassification", TEXT | {"embedding_size": 8}),
    "mpnet": Family("MPNetForSequenceClassification", TEXT),
    "gpt2": causal("GPT2LMHeadModel", "transformer.h.1", True, **GPT2),
    "gpt2 by rank": replace(causal("GPT2LMHeadModel", "transformer.h.1", True, **GPT2), rank=2),
    "llama by rank": replace(causal("LlamaForCausalLM", "*.mlp", False, **CAUSAL), rank=2),
    "llama": causal("LlamaForCausalLM", "head", False, **CAUSAL),
    "qwen2": causal("Qwen2ForCausalLM", "model.layers.1", True, **CAUSAL),
    "qwen3": causal("Qwen3ForCausalLM", "norms", True, **CAUSAL),
    "gemma": causal("GemmaForCausalLM", "model.layers.0.mlp", True, **CAUSAL),
    "opt": causal(
        "OPTForCausalLM",
        "model.decoder.layers.1",
        True,
        **TEXT | {"ffn_dim": 32, "word_embed_proj_dim": 16},
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        T5 | {"num_heads": 2, "decoder_start_token_id": 0, "eos_token_id": 3},
        "seq2seq",
        "decoder.block.1",
    ),
    "bart": Family("BartForConditionalGeneration", PAIR, "seq2seq", "model.decoder.layers.0"),
}


def processor(family: Family) -> Any:
    if family.texts:
        return tiny.tokenizer(model_input_names=["input_ids", "attention_mask"], eos_token="[SEP]")
    return transformers.ViTImageProcessor(size={"height": 16, "width": 16})


def perturbed(module: Any, seed: int) -> Any:
    """The same model, its shared tensors and its statistics a little elsewhere."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.randn(tensor.shape, generator=random))
    return module


def write(family: Family, folder: Path) -> None:
    made = processor(family)
    torch.manual_seed(0)
    base = family.make(3)
    tiny._save(base.eval(), made, folder / "base")
    for seed, (name, labels) in enumerate({"one": 3, "two": 2}.items()):
        expert = family.make(labels)
        own = expert.state_dict()
        same = {k: t for k, t in base.state_dict().items() if own[k].shape == t.shape}
        expert.load_state_dict(same, strict=False)
        tiny._save(perturbed(expert, seed).eval(), made, folder / name)
        for split in ("train", "test"):
            if family.texts:
                rows = [
                    {"text": " ".join(row), "label": n % labels, "target": " ".join(row[:2])}
                    for n, row in enumerate(tiny.sentences(6, seed))
                ]
                if family.kind == "seq2seq":
                    rows = [{k: v for k, v in row.items() if k != "label"} for row in rows]
                tiny.save_rows(folder / f"{name}_{split}.jsonl", rows)
            else:
                random = np.random.default_rng(seed)
                images = random.integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
                np.savez(
                    folder / f"{name}_{split}.npz", x_train=images, y_train=np.arange(6) % labels
                )


def inputs(family: Family) -> dict[str, torch.Tensor]:
    made = processor(family)
    if not family.texts:
        return {"pixel_values": torch.randn(3, 3, 16, 16)}
    texts = [" ".join(row) for row in tiny.sentences(3, 5)]
    batch = dict(made(texts, padding=True, return_tensors="pt"))
    if family.kind == "seq2seq":
        batch["decoder_input_ids"] = torch.tensor([[0, 5, 9]] * 3)
    return batch


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_merge_answers_as_its_exported_folder(family: Family, tmp_path: Path) -> None:
    write(family, tmp_path)
    options: dict[str, Any] = {"data": {"max_target_length": 4}} if family.texts else {}
    spec = tiny.job(
        tmp_path,
        dict.fromkeys(("one", "two"), family.kind),
        suffix=".jsonl" if family.texts else ".npz",
        tint={"site": family.site, "rank": family.rank},
        fit={"rounds": 2, "batch_size": 4},
        **options,
    )
    summary = api.run(spec)
    merge = tintray.load(summary.url)
    tiny.check_export(merge, "two", tmp_path, inputs(family))
    again = api.evaluate(summary.url, store=spec.store, catalog=spec.catalog)
    for one, other in zip(summary.tasks, again.tasks, strict=True):  # fused, and task by task
        assert one.merged == pytest.approx(other.merged, abs=1e-5)
