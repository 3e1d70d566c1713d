"""LoRA adapters: what PEFT writes, altered in its configuration and in its tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from tests.fuzz import raw, trees
from tests.fuzz.surface import Bench, Files, Surface
from tests.fuzz.surfaces import safetensors as weights_surface
from tests.fuzz.surfaces.reading import checked, described, fitted, opened
from tintray.models.adapters import read_adapter, task_vector
from tintray.models.loading import load_base

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ODD: tuple[Any, ...] = (
    *("LORA", "lora", "IA3", "ADALORA", "SEQ_CLS", "CAUSAL_LM", "TOKEN_CLS", "x", "pissa", "loftq"),
    *(["q_proj"], ["lm_head"], "all-linear", ".*", "(" * 50, "(a+)+$", "(.*)*" * 5 + "!"),
    *({"q_proj": 4}, {"(a+)+b": 1}, {".*": 0}, {"[": 2}, {"q_proj": "x"}, {"": 1}),
    *({"q_proj": None}, {"q_proj": float("nan")}, {"(.*.*)*x" * 3: 8}, ["classifier"], "all"),
    *("lora_only", [0, 1], 0, -4),
)
_KEYS = (
    *("peft_type", "task_type", "r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora"),
    *("use_dora", "modules_to_save", "target_modules", "fan_in_fan_out", "bias", "lora_bias"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "layer_replication"),
    *("megatron", "alora_invocation_tokens", "trainable_token_indices", "target_parameters"),
    *("exclude_modules", "base_model_name_or_path", "auto_mapping", "eva_config", "corda_config"),
    *("revision", "new"),
)


def _config(**fields: Any) -> bytes:
    known: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    known |= {"target_modules": ["q_proj", "query"], "fan_in_fan_out": False, "alpha_pattern": {}}
    known |= {"rank_pattern": {}, "modules_to_save": None, "base_model_name_or_path": None}
    return json.dumps({**known, "init_lora_weights": True, **fields}).encode()


def _seeds(_: Path) -> list[Files]:
    generator = torch.Generator().manual_seed(0)

    def factors(path: str, width: int) -> dict[str, Any]:
        shapes = {"A": (2, width), "B": (width, 2)}
        return {
            f"base_model.model.{path}.lora_{name}.weight": torch.randn(*shape, generator=generator)
            for name, shape in shapes.items()
        }

    text = factors("model.layers.0.self_attn.q_proj", 8)
    text |= factors("model.layers.1.self_attn.q_proj", 8)
    seen = factors("vit.encoder.layer.0.attention.attention.query", 16)
    head = "base_model.model.classifier"
    seen[f"{head}.weight"] = torch.randn(3, 16, generator=generator)
    seen[f"{head}.bias"] = torch.zeros(3)
    return [
        {_CONFIG: _config(task_type="CAUSAL_LM"), _WEIGHTS: save(text)},
        {_CONFIG: _config(modules_to_save=["classifier"]), _WEIGHTS: save(seen)},
    ]


def _mutate(rng: Random, files: Files, seeds: Sequence[Files]) -> Files:
    changed = dict(files)
    if rng.random() < 0.4:
        changed[_WEIGHTS] = weights_surface.damaged(rng, files[_WEIGHTS])
        if rng.random() < 0.7:
            return changed
    if rng.random() < 0.1:
        changed[_CONFIG] = raw.damaged_text(rng, files[_CONFIG].decode())
        return changed
    changed[_CONFIG] = trees.with_a_field(rng, json.loads(files[_CONFIG]), _KEYS, _ODD)
    if rng.random() < 0.1:
        own = {"id2label": {"0": "a"}, "architectures": ["ViTForImageClassification"]}
        changed["config.json"] = trees.as_json(rng, trees.damaged(rng, own, _ODD))
    return changed


def _factors(bench: Bench) -> None:
    """As a fit reads them: products that stay products."""
    base, expert = opened(bench)
    module = load_base(base, like=expert)
    adapter = read_adapter(expert, module, "expert")
    task_vector(adapter, module, [name for name, _ in module.named_parameters()])


_DRIVES = {"opened": (30, opened), "loaded": (35, checked), "factors": (30, _factors)}
_DRIVES |= {"validate": (5, fitted), "new": (10, described)}
SURFACE = Surface("adapters", 8, _seeds, _mutate, _DRIVES, folder=True)
