"""What each format of task vectors costs in accuracy, on the ten-scripts zoo.

    python -m benchmarks.formats [--zoo DIR] [--rounds 100] [--examples 500]
    python -m benchmarks.formats --experts [--zoo DIR] [--examples 500]

DIR holds ``zoo/`` and ``data/vision/``. One fit for each ``merge.task_vectors``, in turn, all else
alike, on the first examples of each task's pool and test set. ``error`` is the relative error of
the task vectors in that format, √(Σ‖τ̂ − τ‖² / Σ‖τ‖²).

With ``--experts`` nothing is fitted: each expert is put together again from the base and its own
task vector in the format (λ = 1, where an error of the vector shows whole), and measured on the
first examples of its test set: accuracy, and agreement with the expert as it was.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from tintray.checkpoints.model_folder import open_model_folder
from tintray.checkpoints.tensors import read_tensors
from tintray.data.source import DataSource
from tintray.jobs import api
from tintray.jobs.config.job_file import parse_spec
from tintray.models.calling import answer_space, answer_width
from tintray.models.loading import load_base, load_expert
from tintray.models.structure import backbone_names
from tintray.numerics.choices import Format
from tintray.pools.preparing import labels_of, open_pool
from tintray.storage.artifacts.blobs import fetch_blob
from tintray.storage.artifacts.publish import parse_merge_url, read_manifest
from tintray.tasks.classes import CLASSIFICATION
from tintray.tasks.evaluation import score
from tintray.tinting.self_labels import predict
from tintray.vectors.stacks import make_stack

FORMATS: tuple[Format, ...] = get_args(Format)
SHARED = Path(__file__).parents[2] / "shared"


def job(zoo: Path, folder: Path, format: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The ten experts, with a part of their data."""
    tasks = sorted(p.name for p in (zoo / "zoo").iterdir() if p.is_dir() and p.name != "base")
    for name in tasks:
        part = folder / f"{name}.npz"
        if not part.exists():
            with np.load(zoo / "data" / "vision" / f"{name}.npz") as data:
                cut = {
                    key: data[key] if key == "class_names" else data[key][: arguments.examples]
                    for key in data.files
                }
            np.savez(part, **cut)
    return {
        "name": f"formats-{format}",
        "base": str(zoo / "zoo" / "base"),
        "tasks": [
            {
                "name": name,
                "expert": str(zoo / "zoo" / name),
                "pool": {"path": f"{name}.npz"},
                "test": {"path": f"{name}.npz", "split": "test"},
            }
            for name in tasks
        ],
        "merge": {"task_vectors": format},
        "fit": {"rounds": arguments.rounds},
        "cluster": {"workers": arguments.workers},
        "store": str(folder / "store"),
    }


def error(url: str, format: Format) -> float:
    """The relative error of a merge's task vectors in a format."""
    store, ref = parse_merge_url(url)
    lost = whole = 0.0
    for task in read_manifest(store, ref)["tasks"]:
        for tensor in read_tensors(fetch_blob(store, task["task_vector"], Path())).values():
            held = make_stack([tensor], tensor.shape, format).dense().view(tensor.shape)
            lost += float(torch.sum((held - tensor).double() ** 2))
            whole += float(torch.sum(tensor.double() ** 2))
    return (lost / whole) ** 0.5


def rebuilt(zoo: Path, examples: int) -> dict[str, dict[str, float]]:
    """Experts put together again from task vectors in each format: means over the tasks."""
    tasks = sorted(p.name for p in (zoo / "zoo").iterdir() if p.is_dir() and p.name != "base")
    base = open_model_folder(zoo / "zoo" / "base", role="base")
    sums = {
        format: dict.fromkeys(("accuracy", "agreement", "lost", "whole"), 0.0) for format in FORMATS
    }
    for name in tasks:
        checkpoint = open_model_folder(zoo / "zoo" / name, role=name, base=base)
        start, expert = load_base(base, like=checkpoint), load_expert(checkpoint, name)
        order = DataSource(str(zoo / "data" / "vision" / f"{name}.npz"), f"test[:{examples}]")
        pool = open_pool(order, checkpoint, CLASSIFICATION, name, name)
        width = answer_width(expert)
        labels = labels_of(order, CLASSIFICATION, pool, answer_space(expert, width), name)
        known = predict(expert, pool)
        vectors = {
            tensor: (expert.get_parameter(tensor) - start.get_parameter(tensor)).detach()
            for tensor in backbone_names(start)
        }
        for format, found in sums.items():
            for tensor, vector in vectors.items():
                held = make_stack([vector], vector.shape, format).dense().view(vector.shape)
                with torch.no_grad():
                    expert.get_parameter(tensor).copy_(start.get_parameter(tensor) + held)
                found["lost"] += float(torch.sum((held - vector).double() ** 2))
                found["whole"] += float(torch.sum(vector.double() ** 2))
            scored = score(name, CLASSIFICATION, predict(expert, pool), known, labels)
            found["accuracy"] += scored.merged / len(tasks)
            found["agreement"] += scored.agreement / len(tasks)
    return {
        format: {
            "accuracy": round(found["accuracy"], 4),
            "agreement": round(found["agreement"], 4),
            "error": round((found["lost"] / found["whole"]) ** 0.5, 5),
        }
        for format, found in sums.items()
    }


def main() -> None:
    """Print a table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--zoo", type=Path, default=SHARED)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--experts", action="store_true", help="fit nothing: experts put together")
    arguments = parser.parse_args()
    if arguments.experts:
        print(json.dumps(rebuilt(arguments.zoo, arguments.examples)))
        return
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for format in FORMATS:
            spec = parse_spec(
                job(arguments.zoo, Path(folder), format, arguments), folder=Path(folder)
            )
            summary = api.run(spec)
            found[format] = {
                "normalised": round(summary.normalised_accuracy or 0.0, 4),
                "average": round(summary.average or 0.0, 4),
                "agreement": round(sum(t.agreement for t in summary.tasks) / 10, 4),
                "error": round(error(summary.url, format), 5),
                "fit_seconds": round(summary.seconds["fitting"], 1),
            }
            print(format, found[format], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
