"""What says how a model is built: config.json, and the index of a model in several files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import raw, trees
from tests.fuzz.fixtures import files_below
from tests.fuzz.surface import Bench, Files, Surface
from tests.fuzz.surfaces.reading import base_of, checked, described, loaded, merged
from tests.fuzz.surfaces.safetensors import parts
from tintray.checkpoints.model_folder import open_model_folder
from tintray.models.comparing import check_same_computation
from tintray.models.loading import load_base

_CONFIG, _INDEX, _WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
_SHARD = "model-00001-of-00001.safetensors"
_ODD: tuple[Any, ...] = (
    *("ViTForImageClassification", "LlamaForCausalLM", "BertModel", "AutoModel", "PreTrainedModel"),
    *(["AutoModel"], ["os"], ["Pipeline"], ["ViTModel", "x"], [""], ["logging"], "vit", "bert"),
    *("clip", {"0": "a"}, {"a": 0}, {"LABEL_0": 0}, {"-1": "x"}, {"AutoConfig": "custom.Config"}),
    *("gelu", "none", "torch.nn.Linear", "float16", "float8", "bfloat16", "eager"),
    *("flash_attention_2", {"rope_type": "yarn", "factor": 0}, {"rope_type": "x"}),
    *({"type": "linear", "factor": -1}, {"quant_method": "gptq", "bits": 4}),
    *({"quant_method": "bitsandbytes"}, {"load_in_8bit": True}, _WEIGHTS, _SHARD),
    *("../" * 9 + "etc/passwd", "/etc/passwd", "input", "sub/model.safetensors", 44, 45, 8, 16, 3),
    *(100_000, 10**9),
)
_KEYS = (
    *("architectures", "num_hidden_layers", "vocab_size", "hidden_size", "num_labels", "auto_map"),
    *("rope_parameters", "rope_scaling", "quantization_config", "torch_dtype", "dtype"),
    *("model_type", "hidden_act", "id2label", "attn_implementation", "pruned_heads"),
    *("tie_word_embeddings", "num_attention_heads", "patch_size", "image_size", "problem_type"),
    *("pad_token_id", "use_cache", "transformers_version", "_name_or_path", "num_channels"),
    *("vision_config", "text_config"),
)


def _seeds(fixtures: Path) -> list[Files]:
    found: list[Files] = []
    for folder in ("zoo/three", "text/expert"):
        files = files_below(fixtures / folder)
        config, weights = files[_CONFIG], files[_WEIGHTS]
        names = [name for name in parts(weights)[0] if name != "__metadata__"]
        map_of_weights = dict.fromkeys(names, _SHARD)
        index = {"metadata": {"total_size": len(weights)}, "weight_map": map_of_weights}
        found.append({_CONFIG: config, _WEIGHTS: weights})
        found.append({_CONFIG: config, _INDEX: json.dumps(index).encode(), _SHARD: weights})
    return found


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    name = _INDEX if _INDEX in files and rng.random() < 0.6 else _CONFIG
    if rng.random() < 0.1:
        return {**files, name: raw.damaged_text(rng, files[name].decode())}
    keys = _KEYS if name == _CONFIG else ()
    tree = json.loads(files[name])
    changed = {**files, name: trees.with_a_field(rng, tree, keys, _ODD)}
    if rng.random() < 0.03:
        changed["custom.py"] = b"import os\nos.system('true')\n"
    if rng.random() < 0.03:
        changed.pop(rng.choice(list(changed)))
    return changed


def _opened(bench: Bench) -> None:
    found = open_model_folder(bench.folder, role="expert")
    found.digest()
    found.configs()


def _as_base(bench: Bench) -> None:
    base = open_model_folder(bench.folder, role="base")
    expert = open_model_folder(base_of(bench), role="expert", base=base)
    check_same_computation(base, expert, "the base", "expert")
    load_base(base, like=expert)


_DRIVES = {"opened": (40, _opened), "checked": (20, checked), "loaded": (20, loaded)}
_DRIVES |= {"as base": (15, _as_base), "merge": (5, merged), "new": (10, described)}
SURFACE = Surface("model-configs", 9, _seeds, _mutate, _DRIVES, folder=True)
