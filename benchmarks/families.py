"""How much of their experts merges of other families than small ViTs keep.

    python -m benchmarks.families --text zoo/text

The text zoo is made by ``tintray zoo text zoo/text``. Each row is one job over the same experts and
pools; test splits are read once, at the end of each. The last line is one JSON object; a setting
that was not asked for is null in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs import api
from jobs.results import MergeSummary
from jobs.spec.sections import parse_spec
from jobs.zoo.text_tasks import TASKS

LAST_BLOCK = "bert.encoder.layer.5"
POOL = 1000  # examples of each pool; a mild setting needs no more
ROUNDS = 100
METHODS: dict[str, dict[str, Any]] = {
    "average": {"merge": {"method": "average"}},
    "task arithmetic": {"merge": {"method": "task_arithmetic"}},
    "published loop": {
        "objective": {"labels": "hard", "filter": "agreement"},
        "fit": {
            "updates": "in_turn",
            "coefficient_lr": 1e-2,
            "tint_lr": 1e-2,
            "schedule": "constant",
        },
    },
    "head": {},
    "block": {"tint": {"site": LAST_BLOCK}},
}


def text_job(
    zoo: Path, store: Path, tasks: list[str], rounds: int, sections: Mapping[str, Any]
) -> dict[str, Any]:
    """A job over the text zoo; ``sections`` are laid over it."""
    fit = {"rounds": rounds, "batch_size": 16, **sections.get("fit", {})}
    entries = [
        {
            "name": name,
            "expert": str(zoo / name),
            "adapt": {
                "path": str(zoo / "data" / f"{name}_train.jsonl.gz"),
                "split": f"train[:{POOL}]",
                "max_length": 48,
            },
            "test": {"path": str(zoo / "data" / f"{name}_test.jsonl.gz"), "max_length": 48},
        }
        for name in tasks
    ]
    return {
        "name": "text",
        "base": str(zoo / "base"),
        "tasks": entries,
        "cluster": {"workers": 0},
        "store": str(store),
        **sections,
        "fit": fit,
    }


def measure(job: dict[str, Any]) -> MergeSummary:
    """Run one job."""
    return api.run(parse_spec(job))


def table(found: Mapping[str, MergeSummary]) -> Table:
    """One row per method, one column per task; accuracies on the test splits, in percent."""
    first = next(iter(found.values()))
    shown = Table(title=f"{len(first.tasks)} text tasks on MiniLM")
    for column in ("", *(task.name for task in first.tasks), "average", "normalised"):
        shown.add_column(column, justify="left" if not column else "right", no_wrap=True)
    experts = [task.expert or 0.0 for task in first.tasks]
    mean = sum(experts) / len(experts)
    shown.add_row("experts", *(f"{100 * e:.1f}" for e in experts), f"{100 * mean:.1f}", "100.0")
    for name, summary in found.items():
        shown.add_row(
            name,
            *(f"{100 * task.merged:.1f}" for task in summary.tasks),
            f"{100 * summary.average:.1f}",
            f"{100 * summary.normalised_accuracy:.1f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="folder that `tintray zoo text` made")
    parser.add_argument("--tasks", default=",".join(TASKS), help="text tasks, by comma")
    parser.add_argument("--methods", default=",".join(METHODS), help="rows of the table, by comma")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--store", type=Path, help="artifact store; a new one if left out")
    options = parser.parse_args()
    results: dict[str, float | None] = dict.fromkeys(("text_block", "text_head", "dense", "lora"))
    if options.text is not None:
        store = options.store or Path(tempfile.mkdtemp(prefix="tintray-families-"))
        found: dict[str, MergeSummary] = {}
        for name in options.methods.split(","):
            job = text_job(
                options.text.resolve(), store, options.tasks.split(","), options.rounds,
                METHODS[name],
            )  # fmt: skip
            found[name] = measure(job)
            Console(width=160).print(table(found))
        for name in ("head", "block"):
            if name in found:
                results[f"text_{name}"] = round(found[name].normalised_accuracy, 4)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
