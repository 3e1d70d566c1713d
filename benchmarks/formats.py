"""What each format of task vectors costs in accuracy, on the ten-scripts zoo.

    python -m benchmarks.formats [--zoo DIR] [--rounds 100] [--examples 500]

DIR holds ``zoo/`` and ``data/vision/``. One fit for each ``merge.task_vectors``, in turn, all else
alike, on the first examples of each task's pool and test set. ``error`` is the relative error of
the task vectors in that format, √(Σ‖τ̂ − τ‖² / Σ‖τ‖²).

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

from jobs import api
from jobs.spec.sections import parse_spec
from storage.blobs import fetch_blob
from storage.publish import parse_merge_url, read_manifest
from tintray.bundle import read_tensors
from tintray.stacks import Format, make_stack

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
                "adapt": {"path": f"{name}.npz"},
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


def main() -> None:
    """Print a table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--zoo", type=Path, default=SHARED)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for format in get_args(Format):
            spec = parse_spec(
                job(arguments.zoo, Path(folder), format, arguments), folder=Path(folder)
            )
            summary = api.run(spec)
            found[format] = {
                "normalised": round(summary.normalised_accuracy or 0.0, 4),
                "average": round(summary.average, 4),
                "agreement": round(sum(t.agreement for t in summary.tasks) / 10, 4),
                "error": round(error(summary.url, format), 5),
                "fit_seconds": round(summary.seconds["fitting"], 1),
            }
            print(format, found[format], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
