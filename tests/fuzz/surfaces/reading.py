"""How data files are read: the examples, the labels, and, by whole commands, the pool of a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.fuzz.surface import Bench

_NAMES = ("zero", "one", "two")


def examples(name: str, kind: Any = "classification", **order: Any) -> Callable[[Bench], object]:
    """Reads the inputs in the file ``name``, and then the labels of a kind of task."""

    def drive(bench: Bench) -> None:
        from tintray.data import Answers, DataOrder, read_examples, read_labels

        asked = DataOrder(str(bench.folder / name), **order)
        found = read_examples(asked, "data")
        found.digest()
        read_labels(
            asked,
            kind,
            found.rows,
            Answers(len(_NAMES), {name: n for n, name in enumerate(_NAMES)}),
            "data",
        )

    return drive


def pool(name: str, **order: Any) -> Callable[[Bench], object]:
    """Prepares the images in ``name`` for an expert, as a job does."""

    def drive(bench: Bench) -> None:
        from tintray.checkpoints import open_checkpoint
        from tintray.data import DataOrder
        from tintray.pools import open_pool

        expert = open_checkpoint(bench.fixtures / "zoo" / "three")
        asked = DataOrder(str(bench.folder / name), **order)
        open_pool(asked, expert, "classification", "expert", "data", bench.folder / "cache")

    return drive


def validated(name: str, expert: str = "three") -> Callable[[Bench], object]:
    """Validates a job whose pool is in ``name``."""

    def drive(bench: Bench) -> None:
        zoo = bench.fixtures / "zoo"
        task = {"name": "t", "expert": str(zoo / expert), "adapt": {"path": name}}
        job = {
            "name": "fuzz",
            "base": str(zoo / "base"),
            "tasks": [task],
            "cluster": {"workers": 0},
            "store": "store",
        }
        (bench.folder / "job.yaml").write_text(json.dumps(job))
        bench.command("validate", "job.yaml")

    return drive
