"""Job files: fields of another type, out of range, missing, misspelt, and paths that lead away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import trees
from tests.fuzz.surface import Bench, Drives, Files, Surface, command
from tintray.jobs.config.job_file import JobSpec, load_spec
from tintray.jobs.config.quick_checks import check_files
from tintray.jobs.runs.change import read_tasks

_JOB, _SET = "job.yaml", "set.json"
_ODD: tuple[Any, ...] = (
    *("tint", "surgery", "adamerging", "ties", "dare", "slerp", "none", "auto", "norms", "head"),
    *("*.mlp", "vit.layers.1", "vit.encoder.layer.0", "*", "[", "**", "classifier", "int4", "bf16"),
    *("task", "entropy", "top_p", "weight", "in_turn", "bfloat16", "regression", "segmentation"),
    *("seq2seq", "token_classification", "language_modelling", "train[:3]", "train[90%:]", "test["),
    *("train[5:2]", "train[:99999999999999999999]", "1TiB", "0B", "2GiB", "1e9GiB"),
    *("9" * 400 + "GiB", [0, 1], [1, 0], "subprocess:call", "os:system", "builtins:exec"),
    *("tests.fuzz:x", "a.b:c", "json:loads", "torch:tensor", {"density": 0.5}, {"density": -1}),
    *({"x": 1}, {"image": "label"}, {"text": "text"}, {"a": "b"}),
)
_KEYS = {
    "merge": (
        *("method", "init", "parameters", "scale", "task_vectors", "memory", "granularity"),
        "bounds",
    ),
    "tint": ("sites", "budget", "bits", "learned"),
    "objective": (
        *("labels", "filter", "top_p", "threshold", "target_precision", "true_labels"),
        *("feature_weight", "feature_site", "temperature", "distance"),
    ),
    "fit": (
        *("rounds", "batch_size", "seed", "coefficient_lr", "tint_lr", "correction_lr", "schedule"),
        *("warmup", "tasks_per_round", "patience", "min_delta", "updates", "micro_batch", "groups"),
    ),
    "growth": ("target", "tolerance", "rounds", "batch_size", "refit_rounds"),
    "cluster": ("workers", "threads_per_worker", "shards"),
}
_PARTS = {"pool": "train", "test": "test"}
_TASK = ("kind", "labelled", "zero_shot", "pool", "test", "expert", "name")
_DATA = (
    *("split", "columns", "max_length", "max_bad", "ignore", "sample", "prefix"),
    "max_target_length",
)


def document(fixtures: Path) -> dict[str, Any]:
    """A job over the tiny zoo."""
    zoo = fixtures / "zoo"

    def task(name: str) -> dict[str, Any]:
        own = {"name": name, "kind": "classification", "expert": str(zoo / name)}
        path = str(zoo / f"{name}.npz")
        data = {part: {"path": path, "split": f"{split}[:8]"} for part, split in _PARTS.items()}
        return {**own, **data}

    return {
        "name": "fuzz",
        "base": str(zoo / "base"),
        "tasks": [task("two"), task("three")],
        "merge": {"method": "tint", "granularity": "tensor"},
        "tint": {"sites": "head"},
        "fit": {"rounds": 2, "batch_size": 4, "precision": "float32"},
        "cluster": {"workers": 0},
        "store": "store",
    }


def _seeds(fixtures: Path) -> list[Files]:
    overrides = json.dumps(["fit.rounds=3", "tasks.two.pool.split=train"]).encode()
    job = document(fixtures)
    return [
        {_JOB: json.dumps(job).encode(), _SET: overrides},
        {_JOB: yaml.safe_dump(job, sort_keys=False).encode(), _SET: overrides},
    ]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    tree = yaml.safe_load(files[_JOB])
    times = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.6:
        for _ in range(rng.choice((1, 1, 2))):
            _set_field(rng, tree)
        times = rng.choice((0, 0, 0, 1))
    tree = trees.damaged(rng, tree, _ODD, times)
    overrides = json.dumps([_override(rng) for _ in range(2)]).encode()
    return {_JOB: trees.as_json_or_yaml(rng, tree), _SET: overrides}


def _set_field(rng: Random, tree: dict[str, Any]) -> None:
    if rng.random() < 0.4:
        task = rng.choice(tree["tasks"])
        if not isinstance(task, dict):
            return
        if rng.random() < 0.5 and isinstance(task.get("pool"), dict):
            task["pool"][rng.choice(_DATA)] = trees.odd(rng, _ODD)
        else:
            task[rng.choice(_TASK)] = trees.odd(rng, _ODD)
        return
    section = rng.choice(list(_KEYS))
    held = tree.setdefault(section, {})
    if isinstance(held, dict):
        held[rng.choice(_KEYS[section])] = trees.odd(rng, _ODD)


def _override(rng: Random) -> str:
    section = rng.choice(list(_KEYS))
    path = rng.choice(
        (f"{section}.{rng.choice(_KEYS[section])}", "tasks.0.name", "tasks.two", "name", "x")
    )
    value = trees.odd(rng, _ODD)
    if rng.random() < 0.1:
        path = rng.choice(("", ".", "tasks.9", "tasks.two.x.y", "fit.rounds.x", *trees.UGLY))
    if isinstance(value, float | int) and abs(value) > 1e300:
        value = "1e400"
    text = value if isinstance(value, str) else trees.as_json(rng, value).decode("utf-8", "replace")
    return f"{path}={text[:3000]}"


def _loaded(bench: Bench) -> JobSpec:
    spec = load_spec(bench.folder / _JOB, ())
    check_files(spec)
    return spec


def _recorded(bench: Bench) -> None:
    """As submitting does: written down, and read again on the cluster."""
    JobSpec.from_record(json.loads(json.dumps(_loaded(bench).record())))


def _overridden(bench: Bench) -> None:
    load_spec(bench.folder / _JOB, json.loads((bench.folder / _SET).read_text()))


def _tasks(bench: Bench) -> None:
    read_tasks(bench.folder / _JOB)


_DRIVES: Drives = {
    "loaded": (48, _loaded),
    "recorded": (15, _recorded),
    "overridden": (15, _overridden),
}
_DRIVES |= {"tasks": (15, _tasks), "validate": (6, command(f"validate {_JOB}"))}
_DRIVES |= {"plan": (1, command(f"plan {_JOB} --calibrate 0.1"))}
SURFACE = Surface("job-files", 9, _seeds, _mutate, _DRIVES, confined=False)
