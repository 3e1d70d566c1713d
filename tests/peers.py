"""What mergekit, fusion-bench and peft make of tiny models; run where they are.

    PEER_PYTHON tests/peers.py recipes|methods FOLDER

makes the models below ``FOLDER`` where they are not there and writes ``FOLDER/peers.safetensors``
with tensors ``<case>/<tensor>``. It imports nothing of tintray, so that an environment with the
peers alone can run it; :func:`run_peers` runs it with the interpreter ``TINTRAY_PEERS_PYTHON``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HIDDEN, INNER, WORDS = 16, 24, 32
TYPES = {"": torch.float32, "-fp16": torch.float16, "-bf16": torch.bfloat16}
EXPERTS = ("red", "green", "blue")

State = dict[str, Tensor]


def run_peers(what: str, folder: Path) -> State:
    """What the peers give now; skips the test where no interpreter has them."""
    import pytest

    python = os.environ.get("TINTRAY_PEERS_PYTHON")
    if not python:
        pytest.skip("TINTRAY_PEERS_PYTHON names no interpreter with mergekit, fusion-bench, peft")
    done = subprocess.run(
        [python, __file__, what, str(folder)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(folder / "peers.safetensors")


def sketch(tensors: Sequence[Tensor], steps: Sequence[float]) -> list[float]:
    """A few numbers that tensors that differ somewhere will hardly share."""
    flat = np.concatenate([tensor.double().reshape(-1).numpy() for tensor in tensors])
    places = np.arange(len(flat))
    return [float(f"{flat @ np.cos(step * places):.9g}") for step in steps]


def record(what: str, sketches: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is on record of the peers' results; ``sketches`` are put there anew."""
    path = Path(__file__).parent / f"peers_{what}.json"
    if sketches is not None:
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sketches.items())
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def make_models(folder: Path) -> None:
    """Tiny Llamas in three types: a base, experts a, b and c, some tied, one of two layers."""
    models = _family(2025, layers=4, common=0.01, experts=("a", "b", "c"))
    for name, tensors in models.items():
        for suffix, dtype in TYPES.items():
            save({n: t.to(dtype) for n, t in tensors.items()}, folder / (name + suffix), 4)
        untied = {n: t for n, t in tensors.items() if "lm_head" not in n}
        save(untied, folder / f"{name}-tied", 4)
    short = {n: t for n, t in models["b"].items() if ".2." not in n and ".3." not in n}
    save(short, folder / "short", 2)


def make_checkpoints(folder: Path) -> None:
    """A tiny Llama as base, and three experts whose task vectors have something in common."""
    for name, tensors in _family(2024, layers=2, common=0.02, experts=EXPERTS).items():
        save(tensors, folder / name, 2)


def _family(seed: int, *, layers: int, common: float, experts: Sequence[str]) -> dict[str, State]:
    random, named = np.random.default_rng(seed), shapes(layers)
    base = {n: torch.tensor(random.normal(0, 0.2, s), dtype=torch.float32) for n, s in named}
    shared = {n: random.normal(0, common, s) for n, s in named}
    models = {"base": base}
    for expert in experts:
        own = {n: shared[n] + random.normal(0, 0.02, s) for n, s in named}
        models[expert] = {n: base[n] + torch.tensor(own[n], dtype=torch.float32) for n in base}
    return models


def shapes(layers: int) -> list[tuple[str, tuple[int, ...]]]:
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (WORDS, HIDDEN))]
    for layer in range(layers):
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


def save(tensors: State, folder: Path, layers: int) -> None:
    """A tiny Llama with these tensors."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": WORDS,
        "tie_word_embeddings": folder.name.endswith("-tied"),
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config))


# -- mergekit's recipes ---------------------------------------------------------------------------


def _recipes() -> dict[str, str]:
    text = (Path(__file__).parent / "mergekit_recipes.yml").read_text()
    named = (part.partition("\n") for part in text.split("--- # ")[1:])
    return {name: recipe for name, _, recipe in named}


RECIPES = _recipes()


def recipe_cases(folder: Path) -> State:
    """Every recipe by mergekit; what it refuses is printed and left out."""
    from yaml import safe_load

    if not (folder / "m").exists():
        make_models(folder / "m")
    found: State = {}
    for name, recipe in RECIPES.items():
        try:
            merged = _merged(safe_load(recipe.replace("m/", f"{folder}/m/")), folder, name)
        except (RuntimeError, ValueError) as error:
            print(name, type(error).__name__, error)
            continue
        found |= {f"{name}/{tensor}": t for tensor, t in merged.items()}
    return found


def _merged(recipe: dict[str, Any], folder: Path, name: str) -> State:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    output = folder / f"mergekit-{name}"
    run_merge(MergeConfiguration.model_validate(recipe), str(output), options=options)
    return {
        n: t for file in sorted(output.glob("*.safetensors")) for n, t in load_file(file).items()
    }


# -- methods --------------------------------------------------------------------------------------

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


def mergekit_cases(folder: Path) -> dict[str, State]:
    """Whole merges by mergekit, and SLERP of the first two experts."""
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
        found[name] = _merged(config, folder, name)
    return found


def fusion_bench_cases(base: State, vectors: list[State]) -> dict[str, State]:
    """Merged tensors by fusion-bench's functions on state dicts."""
    from fusion_bench.method.emr_merging.utils import emr_merge
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
    from fusion_bench.method.magmax.magmax import _magmax_select
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
    from fusion_bench.method.tall_mask.task_arithmetic import generate_task_masks
    from fusion_bench.method.task_singular_vector.utils import TSVM_utils
    from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
    from fusion_bench.method.wudi.wudi import wudi_merging

    def added(delta: State, scale: float = 1.0) -> State:
        return {n: base[n] + scale * delta[n].detach() for n in base}

    def fresh() -> list[State]:
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


def gram_matrices(base: State) -> State:
    """Grams [K, in, in] of made-up inputs for every matrix but the embedding."""
    random = np.random.default_rng(5)
    found = {}
    for name in sorted(base):
        if base[name].ndim == 2 and "embed" not in name:
            inputs = random.normal(0, 1, (len(EXPERTS), 60, base[name].shape[1]))
            gram = np.einsum("kni,knj->kij", inputs, inputs) / 60
            found[name] = torch.tensor(gram, dtype=torch.float32)
    return found


def peft_cases(base: State, vectors: list[State]) -> dict[str, State]:
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


def method_cases(folder: Path) -> State:
    """Every method by every peer that has it."""
    base = load_file(folder / "base" / "model.safetensors")
    vectors = []
    for expert in EXPERTS:
        tensors = load_file(folder / expert / "model.safetensors")
        vectors.append({n: tensors[n] - base[n] for n in base})
    cases = fusion_bench_cases(base, vectors) | peft_cases(base, vectors) | mergekit_cases(folder)
    return {
        f"{case}/{n}": t.contiguous() for case, found in cases.items() for n, t in found.items()
    }


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2]).absolute()
    cases = recipe_cases(place) if what == "recipes" else method_cases(place)
    save_file(cases, place / "peers.safetensors")
