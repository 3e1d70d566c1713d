"""What mergekit makes of a table of recipes; run where mergekit is.

    PEER_PYTHON tests/jobs/mergekit_peer.py FOLDER

makes tiny models below ``FOLDER/m`` and writes ``FOLDER/mergekit.safetensors`` with tensors
``<recipe>/<tensor>``. It imports nothing of tintray, so that an environment with mergekit alone
can run it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HIDDEN, INNER, LAYERS, WORDS = 16, 24, 4, 32
TYPES = {"": torch.float32, "-fp16": torch.float16, "-bf16": torch.bfloat16}


def make_models(folder: Path) -> None:
    """Tiny Llamas in three types: a base, experts a, b and c, some tied, one of two layers."""
    random = np.random.default_rng(2025)
    base = {n: torch.tensor(random.normal(0, 0.2, s), dtype=torch.float32) for n, s in shapes()}
    common = {n: random.normal(0, 0.01, s) for n, s in shapes()}
    models = {"base": base}
    for name in "abc":
        own = {n: random.normal(0, 0.02, s) for n, s in shapes()}
        models[name] = {
            n: t + torch.tensor(common[n] + own[n], dtype=torch.float32) for n, t in base.items()
        }
    for name, tensors in models.items():
        for suffix, dtype in TYPES.items():
            save({n: t.to(dtype) for n, t in tensors.items()}, folder / (name + suffix))
        save({n: t for n, t in tensors.items() if "lm_head" not in n}, folder / f"{name}-tied")
    short = {n: t for n, t in models["b"].items() if ".2." not in n and ".3." not in n}
    save(short, folder / "short")


def shapes() -> list[tuple[str, tuple[int, ...]]]:
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (WORDS, HIDDEN))]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        found += [(f"{prefix}.self_attn.{p}_proj.weight", (HIDDEN, HIDDEN)) for p in "qkvo"]
        found += [
            (f"{prefix}.mlp.gate_proj.weight", (INNER, HIDDEN)),
            (f"{prefix}.mlp.up_proj.weight", (INNER, HIDDEN)),
            (f"{prefix}.mlp.down_proj.weight", (HIDDEN, INNER)),
            (f"{prefix}.input_layernorm.weight", (HIDDEN,)),
            (f"{prefix}.post_attention_layernorm.weight", (HIDDEN,)),
        ]
    return [*found, ("model.norm.weight", (HIDDEN,)), ("lm_head.weight", (WORDS, HIDDEN))]


def save(tensors: dict[str, Tensor], folder: Path) -> None:
    """A tiny Llama with these tensors."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 2 if folder.name == "short" else LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": WORDS,
        "tie_word_embeddings": folder.name.endswith("-tied"),
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config))


def _pair(parameters: str = "", suffix: str = "") -> str:
    own = f", parameters: {{{parameters}}}" if parameters else ""
    return f"models: [{{model: m/a{suffix}{own}}}, {{model: m/b{suffix}{own}}}]"


_SLICES = """slices:
  - sources: [{model: m/a, layer_range: [0, 2]}, {model: m/b, layer_range: [0, 2]}]
    parameters: {t: 0.2}
  - sources: [{model: m/a, layer_range: [2, 4]}, {model: m/b, layer_range: [1, 3]}]
    parameters: {t: [0.1, 0.9]}
  - sources: [{model: m/a, layer_range: [1, 2]}, {model: m/b, layer_range: [3, 4]}]"""

RECIPES: dict[str, str] = {
    # mergekit's published examples
    "ex_bio": """
models:
  - {model: m/a-fp16, parameters: {density: 0.5, weight: 0.5}}
  - {model: m/b-fp16, parameters: {density: 0.5, weight: 0.5}}
merge_method: ties
base_model: m/base-fp16
parameters: {normalize: false, int8_mask: true}
dtype: float16""",
    "ex_gradient_slerp": """
slices:
  - sources:
      - {model: m/a, layer_range: [0, 4]}
      - {model: m/b, layer_range: [0, 4]}
merge_method: slerp
base_model: m/a
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: float16""",
    "ex_linear": """
models:
  - {model: m/a, parameters: {weight: 1.0}}
  - {model: m/b, parameters: {weight: 0.3}}
  - {model: m/c, parameters: {weight: 0.5}}
merge_method: linear
dtype: float16""",
    "ex_passthrough": """
slices:
  - sources: [{model: m/a, layer_range: [0, 3]}]
  - sources: [{model: m/b, layer_range: [1, 4]}]
merge_method: passthrough
dtype: float16""",
    "ex_ties": """
models:
  - {model: m/a, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
  - {model: m/b, parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}}
  - model: m/c
    parameters:
      density: 0.33
      weight: [{filter: mlp, value: 0.5}, {value: 0}]
merge_method: ties
base_model: m/base
parameters: {normalize: true, int8_mask: true}
dtype: float16""",
    "ex_arcee_fusion": """
models: [{model: m/a}, {model: m/b}]
merge_method: arcee_fusion
base_model: m/a""",
    # the base as an input, listed or not
    "linear": _pair("weight: 1.0") + "\nmerge_method: linear",
    "linear_base_added": _pair()
    + "\nmerge_method: linear\nbase_model: m/base\nparameters: {weight: 0.5}",
    "linear_base_listed": "models: [{model: m/base}, {model: m/a}]\nmerge_method: linear\n"
    "base_model: m/base\nparameters: {weight: 1.0}",
    "linear_sum": _pair("weight: 0.7") + "\nmerge_method: linear\nparameters: {normalize: false}",
    "linear_negative": "models: [{model: m/a, parameters: {weight: 1.5}},"
    " {model: m/b, parameters: {weight: -0.5}}]\nmerge_method: linear",
    "linear_zero": "models: [{model: m/a, parameters: {weight: 1}},"
    " {model: m/b, parameters: {weight: 0}}]\nmerge_method: linear",
    "linear_layers": "models: [{model: m/a, parameters: {weight: [0, 1]}},"
    " {model: m/b, parameters: {weight: [{filter: mlp, value: [1, 0, 2]}, {value: '0.5'}]}}]\n"
    "merge_method: linear",
    "linear_one_layer_slices": """
slices:
  - sources: [{model: m/a, layer_range: [0, 1], parameters: {weight: [0.2, 0.8]}}]
  - sources:
      - {model: m/a, layer_range: [3, 4], parameters: {weight: [0.2, 0.8]}}
      - {model: m/b, layer_range: [2, 3]}
    parameters: {weight: 0.5}
merge_method: linear""",
    "karcher": _pair() + "\nmerge_method: karcher",
    "karcher_base_added": _pair() + "\nmerge_method: karcher\nbase_model: m/base",
    "karcher_settings": _pair() + "\nmerge_method: karcher\nparameters: {max_iter: '3', tol: 1e-9}",
    # types
    "task_arithmetic_bf16": _pair("weight: 0.5", "-bf16")
    + "\nmerge_method: task_arithmetic\nbase_model: m/base-bf16\ndtype: bfloat16",
    "task_arithmetic_f32_of_bf16": _pair("weight: 0.5", "-bf16")
    + "\nmerge_method: task_arithmetic\nbase_model: m/base-bf16\ndtype: float32",
    "task_arithmetic_as_stored": _pair("weight: 0.5", "-bf16")
    + "\nmerge_method: task_arithmetic\nbase_model: m/base-bf16",
    "task_arithmetic_out_dtype": _pair("weight: 0.5")
    + "\nmerge_method: task_arithmetic\nbase_model: m/base\ndtype: float32\nout_dtype: bfloat16",
    "mixed_types": "models: [{model: m/a-fp16}, {model: m/b-bf16}]\nmerge_method: linear\n"
    "parameters: {weight: 1}\ndtype: float32",
    "mixed_types_as_stored": "models: [{model: m/a-fp16}, {model: m/b-bf16}]\n"
    "merge_method: task_arithmetic\nbase_model: m/base\nparameters: {weight: 1}",
    "ties_bf16": _pair("weight: 0.5, density: 0.4", "-bf16")
    + "\nmerge_method: ties\nbase_model: m/base-bf16\ndtype: bfloat16",
    "breadcrumbs_fp16": _pair("weight: 0.5, density: 0.4", "-fp16")
    + "\nmerge_method: breadcrumbs\nbase_model: m/base-fp16",
    "slerp_bf16": _pair(suffix="-bf16")
    + "\nmerge_method: slerp\nbase_model: m/a-bf16\nparameters: {t: 0.3}\ndtype: bfloat16",
    "stock_fp16": "models: [{model: m/a-fp16}, {model: m/b-fp16}, {model: m/c-fp16}]\n"
    "merge_method: model_stock\nbase_model: m/base-fp16\ndtype: float32",
    # task vectors
    "task_arithmetic": _pair("weight: 5e-1")
    + "\nmerge_method: task_arithmetic\nbase_model: m/base",
    "task_arithmetic_normalized": "models: [{model: m/a, parameters: {weight: 0.7}},"
    " {model: m/b, parameters: {weight: '0.4'}}]\nmerge_method: task_arithmetic\n"
    "base_model: m/base\nparameters: {normalize: true}",
    "task_arithmetic_negative": "models: [{model: m/base}, {model: m/a, parameters:"
    " {weight: -0.5}}]\nmerge_method: task_arithmetic\nbase_model: m/base",
    "task_arithmetic_cancelling": "models: [{model: m/a, parameters: {weight: 0.5}},"
    " {model: m/b, parameters: {weight: -0.5}}]\nmerge_method: task_arithmetic\n"
    "base_model: m/base\nparameters: {normalize: true, lambda: [0.5, 1]}",
    "ties": _pair("weight: 1, density: 0.3")
    + "\nmerge_method: ties\nbase_model: m/base\nparameters: {lambda: 0.8}",
    "ties_unequal": "models: [{model: m/a, parameters: {weight: 0.2, density: 0.9}},"
    " {model: m/b, parameters: {weight: 0.7, density: 0.1}}, {model: m/c, parameters:"
    " {weight: -0.4}}]\nmerge_method: ties\nbase_model: m/base",
    "ties_zero_weight": _pair("weight: 0, density: 0.5")
    + "\nmerge_method: ties\nbase_model: m/base",
    "ties_zero_density": _pair("weight: 1, density: 0")
    + "\nmerge_method: ties\nbase_model: m/base",
    "ties_rescaled": _pair("weight: 1, density: 0.3")
    + "\nmerge_method: ties\nbase_model: m/base\nparameters: {rescale: true, normalize: false}",
    "breadcrumbs": _pair("weight: 0.5, density: 0.5, gamma: 0.125")
    + "\nmerge_method: breadcrumbs\nbase_model: m/base",
    "breadcrumbs_default": _pair()
    + "\nmerge_method: breadcrumbs\nbase_model: m/base\nparameters: {weight: 0.5}",
    "breadcrumbs_full": _pair("weight: 0.5, density: 0.95, gamma: 0.3")
    + "\nmerge_method: breadcrumbs\nbase_model: m/base",
    "breadcrumbs_ties": _pair("weight: 0.5, density: 0.6, gamma: 0.05")
    + "\nmerge_method: breadcrumbs_ties\nbase_model: m/base\nparameters: {normalize: true}",
    "dare_ties_whole": _pair("weight: 0.5, density: 1")
    + "\nmerge_method: dare_ties\nbase_model: m/base",
    "dare_linear_whole": _pair("weight: 0.5")
    + "\nmerge_method: dare_linear\nbase_model: m/base\nparameters: {normalize: on}",
    "dare_nothing": _pair("weight: 0.5, density: 0")
    + "\nmerge_method: dare_linear\nbase_model: m/base",
    "della_whole": _pair("weight: 0.5, density: 1") + "\nmerge_method: della\nbase_model: m/base",
    "della_nothing": _pair("weight: 0.5, density: 0")
    + "\nmerge_method: della_linear\nbase_model: m/base",
    # spheres, angles
    "slerp": "models: [{model: m/b}]\nmerge_method: slerp\nbase_model: m/a\n"
    "parameters: {t: {filter: '*', value: 0.3}}",
    "slerp_slices": _SLICES + "\nmerge_method: slerp\nbase_model: m/b\nparameters: {t: 0.6}",
    "slerp_same": "models: [{model: m/a}, {model: m/a-fp16}]\nmerge_method: slerp\n"
    "base_model: m/a\nparameters: {t: [0, 1]}\ndtype: float32",
    "nuslerp": "models: [{model: m/a, parameters: {weight: 0.3}},"
    " {model: m/b, parameters: {weight: 0.6}}]\nmerge_method: nuslerp",
    "nuslerp_rows": _pair("weight: 0.3") + "\nmerge_method: nuslerp\nbase_model: m/base\n"
    "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}",
    "nuslerp_columns": _pair("weight: 0.3")
    + "\nmerge_method: nuslerp\nparameters: {nuslerp_flatten: false}",
    "multislerp": _pair("weight: 0.3") + "\nmerge_method: multislerp\nbase_model: m/base",
    "multislerp_plain": "models: [{model: m/a}, {model: m/b}, {model: m/c}]\n"
    "merge_method: multislerp\nparameters: {weight: [0.2, 0.4], normalize_weights: false}",
    "model_stock": "models: [{model: m/a}, {model: m/b}, {model: m/c}]\n"
    "merge_method: model_stock\nbase_model: m/base",
    "model_stock_filter_wise": "models: [{model: m/a}, {model: m/b}, {model: m/c}]\n"
    "merge_method: model_stock\nbase_model: m/base\nparameters: {filter_wise: true}",
    "sce": "models: [{model: m/a}, {model: m/b}, {model: m/c}]\nmerge_method: sce\n"
    "base_model: m/base",
    "sce_selected": "models: [{model: m/a}, {model: m/b}, {model: m/c}]\nmerge_method: sce\n"
    "base_model: m/base\nparameters: {select_topk: [0.1, 0.8], int8_mask: true}",
    "nearswap": "models: [{model: m/b}]\nmerge_method: nearswap\nbase_model: m/a\n"
    "parameters: {t: [0.001, 0.01]}",
    # slices
    "passthrough_one": "slices:\n  - sources: [{model: m/a, layer_range: [1, 3]}]\n"
    "merge_method: passthrough",
    "passthrough_models": "models: [{model: m/a}]\nmerge_method: passthrough",
    "passthrough_scaled": """
slices:
  - sources: [{model: m/a, layer_range: [0, 2]}]
  - sources:
      - model: m/a
        layer_range: [1, 3]
        parameters:
          scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]
  - sources: [{model: short, layer_range: [0, 2]}]
merge_method: passthrough""".replace("model: short", "model: m/short"),
    "ties_slices": """
slices:
  - sources:
      - {model: m/base, layer_range: [0, 2]}
      - {model: m/a, layer_range: [0, 2], parameters: {weight: 0.7, density: 0.4}}
  - sources:
      - {model: m/base, layer_range: [2, 4]}
      - {model: m/a, layer_range: [1, 3], parameters: {weight: [0, 1]}}
      - {model: m/b, layer_range: [2, 4]}
    parameters: {weight: 0.3, normalize: false}
merge_method: ties
base_model: m/base
parameters: {density: 0.6}""",
    "slice_with_its_base": """
slices:
  - sources: [{model: m/a, layer_range: [0, 4]}, {model: m/b, layer_range: [0, 4]}]
    base_model: m/b
merge_method: slerp
base_model: m/a
parameters: {t: 0.2}""",
    "tied": "models: [{model: m/a-tied}, {model: m/b-tied}]\nmerge_method: linear\n"
    "parameters: {weight: 1}",
}


def main(folder: Path) -> None:
    """Run every recipe; what mergekit refuses is printed and left out."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from yaml import safe_load

    if not (folder / "m").exists():
        make_models(folder / "m")
    found: dict[str, Tensor] = {}
    for name, recipe in RECIPES.items():
        options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
        output = folder / f"mergekit-{name}"
        try:
            written = safe_load(recipe.replace("m/", f"{folder}/m/"))
            run_merge(MergeConfiguration.model_validate(written), str(output), options=options)
        except (RuntimeError, ValueError) as error:
            print(name, type(error).__name__, error)
            continue
        for file in sorted(output.glob("*.safetensors")):
            found |= {f"{name}/{tensor}": t for tensor, t in load_file(file).items()}
    save_file(found, folder / "mergekit.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
