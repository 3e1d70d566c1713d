"""What mergekit, fusion-bench and peft make of one set of checkpoints; run where they are.

    PEER_PYTHON tests/tintray/merging_peers.py FOLDER

writes ``FOLDER/peers.safetensors`` with tensors ``<case>/<tensor>``. The test beside it writes the
checkpoints, runs this with the interpreter that ``TINTRAY_PEERS_PYTHON`` names, and compares. It
imports nothing of tintray, so that an environment with the peers alone can run it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HIDDEN, INNER, BLOCKS, WORDS = 16, 24, 2, 32
EXPERTS = ("red", "green", "blue")


def make_checkpoints(folder: Path) -> None:
    """A tiny Llama as base, and three experts whose task vectors have something in common."""
    random = np.random.default_rng(2024)
    base = {n: torch.tensor(random.normal(0, 0.2, s), dtype=torch.float32) for n, s in _shapes()}
    common = {n: random.normal(0, 0.02, s) for n, s in _shapes()}
    _save(base, folder / "base")
    for expert in EXPERTS:
        own = {n: random.normal(0, 0.02, s) for n, s in _shapes()}
        tensors = {n: base[n] + torch.tensor(common[n] + own[n], dtype=torch.float32) for n in base}
        _save(tensors, folder / expert)


def _shapes() -> list[tuple[str, tuple[int, ...]]]:
    shapes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (WORDS, HIDDEN))]
    for block in range(BLOCKS):
        prefix = f"model.layers.{block}"
        shapes += [
            (f"{prefix}.self_attn.{p}_proj.weight", (HIDDEN, HIDDEN)) for p in ("q", "k", "v", "o")
        ]
        shapes += [
            (f"{prefix}.mlp.gate_proj.weight", (INNER, HIDDEN)),
            (f"{prefix}.mlp.up_proj.weight", (INNER, HIDDEN)),
            (f"{prefix}.mlp.down_proj.weight", (HIDDEN, INNER)),
            (f"{prefix}.input_layernorm.weight", (HIDDEN,)),
            (f"{prefix}.post_attention_layernorm.weight", (HIDDEN,)),
        ]
    return [*shapes, ("model.norm.weight", (HIDDEN,)), ("lm_head.weight", (WORDS, HIDDEN))]


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": WORDS,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))


# -- mergekit, from its configuration to its output folder --------------------------------------

MERGEKIT: dict[str, dict[str, Any]] = {
    "average": {"merge_method": "linear", "each": {"weight": 1.0}, "base": False},
    "task_arithmetic": {"merge_method": "task_arithmetic", "each": {"weight": 0.3}},
    "ties": {
        "merge_method": "ties",
        "each": {"weight": 1.0, "density": 0.2},
        "parameters": {"normalize": True},
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "each": {"weight": 0.3, "density": 0.5, "gamma": 0.25},
    },
    "model_stock": {"merge_method": "model_stock", "each": {}},
    "karcher": {
        "merge_method": "karcher",
        "each": {},
        "base": False,
        "parameters": {"max_iter": 50, "tol": 1e-9},
    },
}


def mergekit_cases(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Whole merges by mergekit, and SLERP of the first two experts."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    found = {}
    cases = {name: (known, EXPERTS) for name, known in MERGEKIT.items()}
    slerp = {"merge_method": "slerp", "parameters": {"t": 0.5}, "each": {}, "base": EXPERTS[0]}
    cases["slerp"] = (slerp, EXPERTS[:2])
    for name, (known, experts) in cases.items():
        config: dict[str, Any] = {
            "merge_method": known["merge_method"],
            "models": [
                {"model": str(folder / expert), "parameters": known["each"]} for expert in experts
            ],
            "parameters": known.get("parameters", {}),
            "dtype": "float32",
        }
        base = known.get("base", "base")
        if base:
            config["base_model"] = str(folder / base)
        options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
        output = folder / f"mergekit-{name}"
        run_merge(MergeConfiguration.model_validate(config), str(output), options=options)
        files = sorted(output.glob("*.safetensors"))
        found[name] = {n: t for file in files for n, t in load_file(file).items()}
    return found


# -- fusion-bench and peft, on task vectors --------------------------------------------------------


def fusion_bench_cases(
    base: dict[str, torch.Tensor], vectors: list[dict[str, torch.Tensor]]
) -> dict[str, dict[str, torch.Tensor]]:
    """Merged tensors by fusion-bench's functions on state dicts."""
    from fusion_bench.method.emr_merging.utils import emr_merge
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
    from fusion_bench.method.magmax.magmax import _magmax_select
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
    from fusion_bench.method.tall_mask.task_arithmetic import generate_task_masks
    from fusion_bench.method.task_singular_vector.utils import TSVM_utils
    from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
    from fusion_bench.method.wudi.wudi import wudi_merging

    def added(delta: dict[str, torch.Tensor], scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {n: base[n] + scale * delta[n].detach() for n in base}

    def fresh() -> list[dict[str, torch.Tensor]]:
        return [{n: t.clone() for n, t in vector.items()} for vector in vectors]

    total = {n: sum(v[n] for v in vectors) for n in base}
    multi = {n: base[n] + total[n] for n in base}
    masks = [
        generate_task_masks(multi, {n: base[n] + v[n] for n in base}, base, 0.4) for v in vectors
    ]
    users = {n: sum(m[n] for m in masks) for n in base}
    ties = {
        n: ties_merging(
            torch.stack([v[n].reshape(-1) for v in vectors]),
            reset_thresh=0.2,
            merge_func="dis-mean",
        ).reshape(base[n].shape)
        for n in base
    }
    flat = [{"all": torch.cat([v[n].reshape(-1) for n in sorted(base)])} for v in vectors]
    unified, selected, rescalers = emr_merge(flat)
    grams = gram_matrices(base)
    experts = {n: [base[n] + v[n] for v in vectors] for n in base}
    weights = [
        {n.removesuffix(".weight"): of[k] for n, of in grams.items()} for k in range(len(vectors))
    ]
    return {
        "tsv_m": added(TSVM_utils.compute_and_sum_svd_mem_reduction(fresh(), accelerator="cpu")),
        "iso_c": added(iso_c(fresh(), accelerator="cpu")),
        "iso_cts": added(iso_cts(fresh(), 0.8, accelerator="cpu")),
        "wudi": added(wudi_merging(fresh(), accelerator="cpu", iter_num=300)),
        "magmax": added(_magmax_select(fresh()), 0.5),
        "consensus": added({n: total[n] * (users[n] >= 2) for n in base}, 0.3),
        "tall_masks": {
            f"{name}.{n}": base[n] + mask[n] * total[n]
            for name, mask in zip(EXPERTS, masks, strict=True)
            for n in base
        },
        "emr": {
            name: unified["all"] * selected["all"][k] * rescalers[k]
            for k, name in enumerate(EXPERTS)
        },
        "ties (fusion-bench)": added(ties),
        "regmean": merging_with_regmean_weights(experts, weights, 0.9),
    }


def gram_matrices(base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Grams [K, in, in] of made-up inputs for every matrix but the embedding."""
    random = np.random.default_rng(5)
    found = {}
    for name in sorted(base):
        if base[name].ndim == 2 and "embed" not in name:
            inputs = random.normal(0, 1, (len(EXPERTS), 60, base[name].shape[1]))
            gram = np.einsum("kni,knj->kij", inputs, inputs) / 60
            found[name] = torch.tensor(gram, dtype=torch.float32)
    return found


def peft_cases(
    base: dict[str, torch.Tensor], vectors: list[dict[str, torch.Tensor]]
) -> dict[str, dict[str, torch.Tensor]]:
    """Merged tensors by peft's functions, which its adapters are merged with."""
    from peft.utils import merge_utils

    ones = torch.ones(len(vectors))
    each = {n: [v[n] for v in vectors] for n in base}
    torch.manual_seed(0)
    pruned = {n: [merge_utils.prune(t, 0.4, "random", True) for t in each[n]] for n in each}
    return {
        "task_arithmetic (peft)": {
            n: base[n] + merge_utils.task_arithmetic(each[n], 0.3 * ones) for n in base
        },
        "ties (peft)": {n: base[n] + merge_utils.ties(each[n], ones, 0.2) for n in base},
        # What it dropped is random; the test reads the mask off what is left.
        "dare (peft)": {f"{EXPERTS[k]}.{n}": pruned[n][k] for n in base for k in range(3)},
    }


def main(folder: Path) -> None:
    """Run every case."""
    base = load_file(folder / "base" / "model.safetensors")
    vectors = []
    for expert in EXPERTS:
        tensors = load_file(folder / expert / "model.safetensors")
        vectors.append({n: tensors[n] - base[n] for n in base})
    cases = fusion_bench_cases(base, vectors) | peft_cases(base, vectors) | mergekit_cases(folder)
    flat = {
        f"{case}/{n}": t.contiguous() for case, found in cases.items() for n, t in found.items()
    }
    save_file(flat, folder / "peers.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
