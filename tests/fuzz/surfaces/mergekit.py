"""mergekit's files: every form of its grammar, altered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import raw, trees
from tests.fuzz.surface import Bench, Files, Surface, command
from tintray.jobs.config.mergekit import read_mergekit

_FILE = "merge.yaml"
_ODD: tuple[Any, ...] = (
    *("linear", "ties", "dare_ties", "dare_linear", "slerp", "passthrough", "model_stock"),
    *("karcher", "task_arithmetic", "breadcrumbs", "della", "nearswap", "arcee_fusion", "sce"),
    *("float16", "float32", "bfloat16", "auto", "union", "base", "float64", [0, 0.5, 1], [[0]]),
    *([0.5, "x"], [0, 99], [0], [2, 1], [{"filter": "mlp", "value": 0.5}, {"value": 1}]),
    *([{"filter": 3, "value": []}], [{"value": None}], [{"filter": "(a+)+$", "value": 1}]),
    *({"filter": "mlp"}, {"value": 1}, [-1, 2], [0, 10**9], 0.0, -0.5),
)
_KEYS = (
    *("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "x"),
    *("tokenizer_source", "tokenizer", "chat_template", "name", "modules", "_name"),
)
_OWN = (
    *("weight", "density", "t", "normalize", "lambda", "gamma", "epsilon", "rescale", "max_iter"),
    *("tol", "int8_mask", "filter_wise", "select_topk", "scale", "eta", "tukey_fence"),
)


def _documents(fixtures: Path) -> list[dict[str, Any]]:
    base, expert, other = (str(fixtures / "text" / name) for name in ("base", "expert", "other"))
    weighted = [_model(base, weight=0.3), _model(expert, weight=0.7)]
    sparse = [_model(expert, weight=1.0, density=0.5), _model(other, weight=[0, 1], density=0.5)]
    added = [_model(expert, weight=0.5)]
    both = [{"sources": [_layers(base, 0, 2), _layers(expert, 0, 2)]}]
    stacked = [{"sources": [_layers(base, 0, 1)]}, {"sources": [_layers(other, 0, 2)]}]
    curve = {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.5}]}
    norm = {"normalize": True}
    return [
        {"merge_method": "linear", "models": weighted},
        {"merge_method": "ties", "base_model": base, "models": sparse, "parameters": norm},
        {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": added,
            "dtype": "float32",
        },
        {"merge_method": "slerp", "base_model": base, "slices": both, "parameters": curve},
        {"merge_method": "passthrough", "slices": stacked, "dtype": "bfloat16"},
    ]


def _layers(path: str, first: int, last: int) -> dict[str, Any]:
    return {"model": path, "layer_range": [first, last]}


def _model(path: str, **parameters: Any) -> dict[str, Any]:
    return {"model": path, "parameters": parameters}


def _seeds(fixtures: Path) -> list[Files]:
    documents = _documents(fixtures)
    return [{_FILE: yaml.safe_dump(document, sort_keys=False).encode()} for document in documents]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    if rng.random() < 0.15:
        return {_FILE: raw.damaged_text(rng, files[_FILE].decode())}
    tree = yaml.safe_load(files[_FILE])
    times = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.6:
        _set_field(rng, tree)
        times = rng.choice((0, 0, 1))
    tree = trees.damaged(rng, tree, _ODD, times)
    return {_FILE: trees.as_json_or_yaml(rng, tree)}


def _set_field(rng: Random, tree: dict[str, Any]) -> None:
    value = trees.odd(rng, _ODD)
    action = rng.randrange(3)
    if action == 0:
        tree[rng.choice(_KEYS)] = value
    elif action == 1:
        tree.setdefault("parameters", {})[rng.choice(_OWN)] = value
    else:
        entries = tree.get("models") or tree["slices"][0]["sources"]
        entry = rng.choice(entries)
        entry.setdefault("parameters", {})[rng.choice(_OWN)] = value


def _read(bench: Bench) -> None:
    read_mergekit(bench.folder / _FILE)


_DRIVES = {"read": (88, _read), "merge": (12, command(f"run --from-mergekit {_FILE} --output m"))}
SURFACE = Surface("mergekit", 7, _seeds, _mutate, _DRIVES, confined=False)
