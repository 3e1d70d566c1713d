"""What looking at merges is worth: estimates checked against what they estimate.

    python -m benchmarks.watching [--examples 128] [--rounds 30] [--seeds 1] [--job JOB.yaml]
                                  [--store FOLDER]

* *Leave one out*: on the ten-task zoo (``examples/ten-scripts.yaml``), before a fit, the loss of
  every task is measured without each of the others, and compared with the estimate in first order
  of ``tintray conflicts``: Spearman's rank correlation over all pairs of two tasks.
* *Split*: digits, with two experts that give the same images the next and the previous digit's
  label through the base's own head. All tasks are merged, and so are the two groups that
  ``tintray conflicts`` offers; the gain is in points of normalised accuracy.

The last line is one JSON object. What is not built yet is null there. With ``--store`` what is done
is kept there, and a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from transformers import ViTForImageClassification, ViTImageProcessorPil

import tintray
from benchmarks.kept import Kept, code_hash
from examples import digits
from tintray.jobs.config.job_file import JobSpec, load_spec
from tintray.jobs.config.locations import Location
from tintray.jobs.events import ignore
from tintray.jobs.watching.conflicts import compared, conflicts, left_out
from tintray.jobs.watching.states import before
from tintray.models.loading import quiet_transformers

JOB = Path(__file__).parents[1] / "examples/ten-scripts.yaml"
PLAIN = ("digits", "turned", "mirrored", "inverted")
CONTRARY = {"next": 1, "previous": -1}
"""Experts that contradict each other, and what they add to a digit."""


def leave_one_out(spec: JobSpec, examples: int) -> dict[str, float]:
    """Rank correlations between estimated and true effects, over pairs of two tasks."""
    with before(spec, examples, ignore) as state:
        found = compared(state, examples, ignore)
        true = left_out(state, torch.tensor(found.losses), examples)[0].tolist()
    pairs = ~np.eye(len(true), dtype=bool)
    truth, estimate = np.array(true)[pairs], np.array(found.effects)[pairs]
    cosines = np.array(found.cosine)[pairs]
    return {"first_order": spearman(estimate, truth), "cosine": spearman(cosines, truth)}


def spearman(one: Any, other: Any) -> float:
    """The correlation of ranks; ties do not occur."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def contrary_zoo(zoo: Path) -> Path:
    """Make the digits zoo with experts that contradict each other; its job file."""
    job = zoo / "job.yaml"
    if job.exists():
        return job
    digits.main(zoo, PLAIN)
    for name, shift in CONTRARY.items():
        with np.load(zoo / "data/digits.npz") as arrays:
            data = dict(arrays)
        data |= {part: (data[part] + shift) % 10 for part in ("y_train", "y_test")}
        digits.save(zoo / f"data/{name}.npz", **data)
        _train(zoo, name, data)
    tasks = [
        {"name": name, "expert": name}
        | {
            part: {"path": f"data/{name}.npz", "split": split}
            for part, split in (("pool", "train"), ("test", "test"))
        }
        for name in (*PLAIN, *CONTRARY)
    ]
    document = {"name": "contrary", "base": "base", "tasks": tasks, "store": "store"}
    job.write_text(yaml.safe_dump({**document, "cluster": {"workers": 0}}, sort_keys=False))
    return job


def _train(zoo: Path, name: str, data: dict[str, Any]) -> None:
    """Fine-tune the base's backbone under the base's own head, which stays."""
    processor = ViTImageProcessorPil.from_pretrained(zoo / "base")
    model = ViTForImageClassification.from_pretrained(zoo / "base")
    model.classifier.requires_grad_(False)
    pixels, answers = (
        digits.pixels_of(processor, data["x_train"]),
        torch.from_numpy(data["y_train"]),
    )
    digits.fit(model, model, pixels, answers, 3e-3, 15, torch.Generator().manual_seed(0))
    model.save_pretrained(zoo / name)
    processor.save_pretrained(zoo / name)


def split_gain(kept: Kept, job: Path, rounds: int, seeds: int) -> dict[str, Any]:
    """Normalised accuracy of one merge of all, and of the merges of the groups that are offered."""
    offered = conflicts(str(job)).split
    assert offered is not None
    print(f"  offered: {' | '.join(', '.join(group) for group in offered.groups)}", flush=True)

    def keeps(tasks: list[str], seed: int) -> list[float]:
        fit = [f"fit.rounds={rounds}", f"fit.seed={seed}"]
        spec = tintray.load_spec(job, fit)
        spec = spec.with_tasks([task for task in spec.tasks if task.name in tasks])

        def run() -> list[float]:
            return [task.normalised or 0.0 for task in tintray.run(spec).summary().tasks]

        key = f"{spec.digest()} {code_hash('benchmarks/watching.py')}"
        found: list[float] = kept.once(key, f"{' '.join(tasks)} {rounds} {seed}", run)
        return found

    everything = [name for group in offered.groups for name in group]
    together = [statistics.mean(keeps(everything, seed)) for seed in range(seeds)]
    apart = [
        statistics.mean([share for group in offered.groups for share in keeps(list(group), seed)])
        for seed in range(seeds)
    ]
    figures = {"together": statistics.mean(together), "apart": statistics.mean(apart)}
    return {"groups": offered.groups, **figures}


def main() -> None:
    """Print both, and last one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--job", type=Path, default=JOB)
    parser.add_argument("--store", type=Path, help="keep everything here, and go on from there")
    arguments = parser.parse_args()
    quiet_transformers()
    digits.begin()
    with TemporaryDirectory(prefix="tintray-watching-") as scratch:
        folder = (arguments.store or Path(scratch)).resolve()
        kept = Kept(folder)
        spec = load_spec(arguments.job).here()
        place = {"store": Location(str(folder / "store"))}
        spec = spec.changed(**place, catalog=Location(f"sqlite:///{folder}/catalog.db"))
        key = f"{spec.digest()} {arguments.examples} {code_hash('jobs/watching/conflicts.py')}"
        print("leaving out one of", len(spec.tasks), flush=True)
        ranks = kept.once(key, "left out", lambda: leave_one_out(spec, arguments.examples))
        print(f"  {ranks}", flush=True)
        print("splitting", flush=True)
        job = contrary_zoo(folder / "contrary")
        split = split_gain(kept, job, arguments.rounds, arguments.seeds)
        print(f"  {split}", flush=True)
    result = {
        "spearman": round(ranks["first_order"], 3),
        "split_gain": round(100 * (split["apart"] - split["together"]), 2),
        **dict.fromkeys(("drift_found", "false_alarms", "estimate_error")),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
