"""What a bad expert costs, with each confidence filter: the digits zoo, one expert made bad.

    python -m benchmarks.bad_expert [--rounds 300] [--seeds 3] [--share 0.3]
                                    [--tasks TASK ...] [--store FOLDER]

The expert ``turned`` is fine-tuned again with a share of its labels replaced by wrong ones; then
it and the others, all seven by default, are merged under each filter. The last line is one JSON
object: by filter, the accuracy of the bad task, of the others, and the share of the bad task's pool
that was kept. With ``--store`` what is done is kept there, and a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import tintray
from benchmarks.kept import Kept
from benchmarks.zoos.building import job_file
from examples import digits
from tintray.models.loading import quiet_transformers

BAD = "turned"
FILTERS = ("none", "agreement", "top_p", "threshold", "weight")


def corrupt(zoo: Path, share: float) -> float:
    """Fine-tune one expert again, a share of its labels wrong; its test accuracy."""
    path = zoo / "data" / f"{BAD}.npz"
    with np.load(path) as arrays:
        data = dict(arrays)
    random = np.random.default_rng(0)
    rows = random.permutation(len(data["y_train"]))[: round(share * len(data["y_train"]))]
    classes = len(data["class_names"])
    right = data["y_train"].copy()
    data["y_train"][rows] = (right[rows] + random.integers(1, classes, len(rows))) % classes
    np.savez(path, **data)
    found = digits.train_expert(zoo, BAD)
    np.savez(path, **data | {"y_train": right})
    return found


def merge(kept: Kept, job: Path, name: str, rounds: int, seed: int) -> dict[str, float]:
    """One merge under a filter: accuracy of the bad task, mean of the others, share kept."""
    given = [f"objective.filter={name}", f"fit.rounds={rounds}", f"fit.seed={seed}"]
    spec = tintray.load_spec(job, [*given, f"store={job.parent}/store", "cluster.workers=0"])

    def run() -> dict[str, float]:
        tasks = tintray.run(spec).summary().tasks
        bad = next(task for task in tasks if task.name == BAD)
        others = statistics.mean(task.merged for task in tasks if task is not bad)
        return {"bad": bad.merged, "others": others, "kept": bad.selected_fraction}

    found: dict[str, float] = kept.once(spec.digest(), " ".join(given), run)
    return found


def main() -> None:
    """Print one row per filter and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--tasks", nargs="*", default=digits.TASKS, choices=digits.TASKS)
    parser.add_argument("--store", type=Path, help="keep everything here, and go on from there")
    arguments = parser.parse_args()
    quiet_transformers()
    with TemporaryDirectory(prefix="tintray-bad-expert-") as scratch:
        folder = (arguments.store or Path(scratch)).resolve()
        kept = Kept(folder)
        tasks = tuple(dict.fromkeys((BAD, *arguments.tasks)))
        zoo = folder / f"zoo-{len(tasks)}-{arguments.share:g}"
        note = f"a share of {arguments.share:g} corrupted, {', '.join(tasks)}"
        digits.main(zoo, tasks)
        expert: float = kept.once(note, note, lambda: corrupt(zoo, arguments.share))
        print(f"the bad expert: {expert:.1%} on its test set", flush=True)
        job = zoo / "job.yaml"
        job.write_text(job_file("digits", tasks))
        result: dict[str, dict[str, float]] = {}
        for name in FILTERS:
            runs = [
                merge(kept, job, name, arguments.rounds, seed) for seed in range(arguments.seeds)
            ]
            result[name] = {
                key: statistics.mean(run[key] for run in runs) for key in ("bad", "others", "kept")
            }
            row = result[name]
            print(
                f"{name:>10}  bad task {row['bad']:.1%}  others {row['others']:.1%}  "
                f"kept {row['kept']:.0%}",
                flush=True,
            )
    print(json.dumps({"expert": expert, "share": arguments.share, "filters": result}))


if __name__ == "__main__":
    main()
