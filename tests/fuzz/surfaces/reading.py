"""How inputs are read: model folders; examples and labels; and, by whole commands, a job's pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fuzz.surface import Bench, Drive, UnansweredError
from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.data.labels import Answers
from tintray.data.reading import read_examples
from tintray.data.source import DataSource
from tintray.models.comparing import check_same_computation
from tintray.models.loading import load_base, load_expert
from tintray.pools.preparing import open_pool
from tintray.tasks.registry import find_kind

_NAMES = ("zero", "one", "two")
_TEXT_JOB = ("language_modelling", "text/base", "model.layers.1")
_IMAGE_JOB = ("classification", "zoo/base", "head")


def is_text(bench: Bench) -> bool:
    """Whether the input is a language model, or an adapter or a tokenizer of one."""
    if b"lama" in bench.content("config.json"):
        return True
    adapter = bench.content("adapter_model.safetensors")
    return b"self_attn" in adapter or (bench.folder / "tokenizer.json").exists()


def base_of(bench: Bench) -> Path:
    """The base of such models as the input is one."""
    return bench.fixtures / ("text/base" if is_text(bench) else "zoo/base")


def opened(bench: Bench) -> tuple[ModelFolder, ModelFolder]:
    """A base, and the input as an expert of it."""
    base = open_model_folder(base_of(bench), role="base")
    return base, open_model_folder(bench.folder, role="expert", base=base)


def checked(bench: Bench) -> None:
    """As a job looks at an expert."""
    base, expert = opened(bench)
    check_same_computation(base, expert, "the base", "expert")
    load_base(base, like=expert)
    load_expert(expert, "expert")


def loaded(bench: Bench) -> None:
    """As an expert that needs no base."""
    load_expert(open_model_folder(bench.folder, role="expert"), "expert")


def merged(bench: Bench) -> None:
    """Merged with itself."""
    words = ("--base", base_of(bench), "--method", "average", "--output", "merged")
    bench.command("merge", bench.folder, bench.folder, *words)


def fitted(bench: Bench) -> None:
    """As the only expert of a job."""
    (bench.folder / "pool.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w3"}\n')
    text = is_text(bench)
    pool = "pool.jsonl" if text else bench.fixtures / "zoo/three.npz"
    fit_job(bench, bench.folder, pool, text=text)


def examples(name: str, kind: str = "classification", **fields: Any) -> Drive:
    """Reads the inputs in the file ``name``, and then the labels of a kind of task."""

    def drive(bench: Bench) -> None:
        source = DataSource(str(bench.folder / name), **fields)
        found = read_examples(source, "data")
        found.digest()
        answers = Answers(len(_NAMES), {name: n for n, name in enumerate(_NAMES)})
        find_kind(kind).read_labels(source, found.rows, answers, "data")

    return drive


def pool(name: str, expert: str = "zoo/three", kind: str = "classification") -> Drive:
    """Prepares the examples in ``name`` for an expert, as a job does."""

    def drive(bench: Bench) -> None:
        folder = open_model_folder(bench.fixtures / expert)
        source, cache = DataSource(str(bench.folder / name)), bench.folder / "cache"
        open_pool(source, folder, find_kind(kind), "expert", "data", cache)

    return drive


def validated(name: str) -> Drive:
    """Validates, and runs, a job whose pool is in ``name``."""
    return lambda bench: fit_job(bench, bench.fixtures / "zoo/three", name)


def fit_job(bench: Bench, expert: Path, pool: str | Path, *, text: bool = False) -> None:
    """Validate a job with one expert; what that accepts runs to its end.

    Raises
    ------
    UnansweredError
        It does not.
    """
    kind, base, site = _TEXT_JOB if text else _IMAGE_JOB
    task = {"name": "t", "kind": kind, "expert": str(expert), "pool": {"path": str(pool)}}
    fit = {"rounds": 1, "batch_size": 4, "precision": "float32"}
    job = {"name": "fuzz", "base": str(bench.fixtures / base), "tasks": [task], "fit": fit}
    job |= {"tint": {"sites": site}, "cluster": {"workers": 0}, "store": "store"}
    (bench.folder / "job.yaml").write_text(json.dumps(job))
    if bench.command("validate", "job.yaml") == 0 and bench.command("run", "job.yaml") != 0:
        raise UnansweredError("tintray run fails where tintray validate does not")


def described(bench: Bench) -> None:
    """What ``tintray new`` tells of it in a job file."""
    places = ("--base", base_of(bench), "--data", bench.fixtures / "zoo/three.npz")
    bench.command("new", ".", *places, "--no-check", "--dry-run", "--yes")
