"""What looking at merges is worth: estimates checked against what they estimate.

    python -m benchmarks.watching [--examples 128] [--rounds 30] [--seeds 1] [--job JOB.yaml]
                                  [--store FOLDER] [--only PART ...] [--merge MERGE ...]

* *Leave one out*: on the ten-task zoo (``examples/ten-scripts.yaml``), before a fit, the loss of
  every task is measured without each of the others, and compared with the estimate in first order
  of ``tintray conflicts``: Spearman's rank correlation over all pairs of two tasks.
* *Split*: digits, with two experts that give the same images the next and the previous digit's
  label through the base's own head. All tasks are merged, and so are the two groups that
  ``tintray conflicts`` offers; the gain is in points of normalised accuracy.

* *Drift*: of merges (``--merge``; a fit of the digits zoo if none is named), 500 new examples of
  each task beside others that the merge is known by, as they are and corrupted
  (``benchmarks.drifting``): how often severity 3 is noticed, how often clean examples are, and how
  far the estimate of accuracy is from the truth, over clean examples and severity 3.

The last line is one JSON object; what was not asked for (``--only``) is null there. With
``--store`` what is done is kept there, and a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from transformers import ViTForImageClassification, ViTImageProcessorPil

import tintray
from benchmarks import drifting
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
    first, second = (np.argsort(np.argsort(values)) for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


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
    return _job_file(job, "contrary", (*PLAIN, *CONTRARY))


def _job_file(job: Path, name: str, tasks: Sequence[str]) -> Path:
    """A job over these experts, in this process."""
    entries = [
        {"name": task, "expert": task}
        | {
            part: {"path": f"data/{task}.npz", "split": split}
            for part, split in (("pool", "train"), ("test", "test"))
        }
        for task in tasks
    ]
    document = {"name": name, "base": "base", "tasks": entries, "store": "store"}
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


def digits_merge(folder: Path) -> str:
    """A merge of the digits zoo, fitted in the demo's way; where it lies."""
    zoo = folder / "digits"
    if not (zoo / PLAIN[-1]).exists():
        digits.main(zoo, PLAIN)
    job = _job_file(zoo / "job.yaml", "digits", PLAIN)
    return tintray.run(tintray.load_spec(job)).url


def drift(url: str, examples: int, severities: Sequence[int], count: int) -> list[dict[str, Any]]:
    """Every trial of a merge."""
    merge = tintray.load(url)
    return [asdict(trial) for trial in drifting.trials(merge, examples, severities, count)]


def of_drift(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How often severity 3 is noticed and clean examples are, and errors of estimates in points."""

    def mean(chosen: Sequence[float]) -> float:
        return statistics.mean(chosen) if chosen else math.nan

    by = {n: [row for row in rows if row["severity"] == n] for n in range(6)}
    points = {
        n: mean([100 * abs(row["estimate"] - row["accuracy"]) for row in of])
        for n, of in by.items()
        if of
    }
    within = [abs(row["estimate"] - row["accuracy"]) <= row["error"] for row in rows]
    print(f"  error of the estimate by severity, in points: {points}", flush=True)
    print(f"  within the error that it names: {mean(within):.1%}", flush=True)
    return {
        "drift_found": mean([row["found"] for row in by[3]]),
        "false_alarms": mean([row["found"] for row in by[0]]),
        "estimate_error": mean([points[0], points[3]]),
    }


PARTS = ("leave-one-out", "split", "drift")


def main() -> None:
    """Print what was asked for, and last one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--job", type=Path, default=JOB)
    parser.add_argument("--store", type=Path, help="keep everything here, and go on from there")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--merge", nargs="+", default=[], help="whose drift is measured")
    parser.add_argument("--new", type=int, default=500, help="new examples of each task")
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--trials", type=int, default=10, help="of each set of new examples")
    arguments = parser.parse_args()
    quiet_transformers()
    digits.begin()
    result: dict[str, float | None] = dict.fromkeys(
        ("spearman", "split_gain", "drift_found", "false_alarms", "estimate_error")
    )
    with TemporaryDirectory(prefix="tintray-watching-") as scratch:
        folder = (arguments.store or Path(scratch)).resolve()
        kept = Kept(folder)
        if "leave-one-out" in arguments.only:
            spec = load_spec(arguments.job).here()
            place = {"store": Location(str(folder / "store"))}
            spec = spec.changed(**place, catalog=Location(f"sqlite:///{folder}/catalog.db"))
            key = f"{spec.digest()} {arguments.examples} {code_hash('jobs/watching/conflicts.py')}"
            print("leaving out one of", len(spec.tasks), flush=True)
            ranks = kept.once(key, "left out", lambda: leave_one_out(spec, arguments.examples))
            print(f"  {ranks}", flush=True)
            result["spearman"] = round(ranks["first_order"], 3)
        if "split" in arguments.only:
            print("splitting", flush=True)
            job = contrary_zoo(folder / "contrary")
            split = split_gain(kept, job, arguments.rounds, arguments.seeds)
            print(f"  {split}", flush=True)
            result["split_gain"] = round(100 * (split["apart"] - split["together"]), 2)
        if "drift" in arguments.only:
            print("drift", flush=True)
            rows = []
            asked = (arguments.new, arguments.severities, arguments.trials)
            for url in arguments.merge or [digits_merge(folder)]:
                key = f"{url} {asked} {code_hash('benchmarks/drifting.py')}"
                rows += kept.once(key, f"drift of {url}", partial(drift, url, *asked))
            result |= {name: round(value, 3) for name, value in of_drift(rows).items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
