"""How data files are read: the examples, the labels, and, by whole commands, the pool of a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.surface import Bench, UnansweredError

_NAMES = ("zero", "one", "two")


def examples(name: str, kind: Any = "classification", **order: Any) -> Callable[[Bench], object]:
    """Reads the inputs in the file ``name``, and then the labels of a kind of task."""

    def drive(bench: Bench) -> None:
        from tintray.data.labels import Answers
        from tintray.data.reading import read_examples
        from tintray.data.source import DataSource
        from tintray.tasks.registry import find_kind

        asked = DataSource(str(bench.folder / name), **order)
        found = read_examples(asked, "data")
        found.digest()
        find_kind(kind).read_labels(
            asked,
            found.rows,
            Answers(len(_NAMES), {name: n for n, name in enumerate(_NAMES)}),
            "data",
        )

    return drive


def pool(name: str, **order: Any) -> Callable[[Bench], object]:
    """Prepares the images in ``name`` for an expert, as a job does."""

    def drive(bench: Bench) -> None:
        from tintray.checkpoints.model_folder import open_model_folder
        from tintray.data.source import DataSource
        from tintray.pools.preparing import open_pool
        from tintray.tasks.classes import CLASSIFICATION

        expert = open_model_folder(bench.fixtures / "zoo" / "three")
        asked = DataSource(str(bench.folder / name), **order)
        open_pool(asked, expert, CLASSIFICATION, "expert", "data", bench.folder / "cache")

    return drive


def validated(name: str) -> Callable[[Bench], object]:
    """Validates, and runs, a job whose pool is in ``name``."""

    def drive(bench: Bench) -> None:
        fit_job(bench, bench.fixtures / "zoo/three", name)

    return drive


def fit_job(bench: Bench, expert: Path, pool: str | Path, *, text: bool = False) -> None:
    """Validate a job with one expert; what that accepts runs to its end.

    Raises
    ------
    UnansweredError
        It does not.
    """
    task = {
        "name": "t",
        "kind": "language_modelling" if text else "classification",
        "expert": str(expert),
        "pool": {"path": str(pool)},
    }
    job = {
        "name": "fuzz",
        "base": str(bench.fixtures / ("text/base" if text else "zoo/base")),
        "tasks": [task],
        "tint": {"site": "model.layers.1" if text else "head"},
        "fit": {"rounds": 1, "batch_size": 4, "precision": "float32"},
        "cluster": {"workers": 0},
        "store": "store",
    }
    (bench.folder / "job.yaml").write_text(json.dumps(job))
    if bench.command("validate", "job.yaml") == 0 and bench.command("run", "job.yaml") != 0:
        raise UnansweredError("tintray run fails where tintray validate does not")
