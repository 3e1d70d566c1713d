"""What a bad expert costs, with each confidence filter: the digits zoo, one expert made bad.

    python -m benchmarks.bad_expert [--rounds 300] [--seeds 3] [--share 0.3]

The expert ``turned`` is fine-tuned again with a share of its labels replaced by wrong ones; then
the eight tasks are merged under each filter. The last line is one JSON object: by filter, the
accuracy of the bad task, of the seven others, and the share of the pool that was kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import tintray
from jobs.zoo.building import job_file
from jobs.zoo.digits import build
from jobs.zoo.experts import train_expert
from jobs.zoo.recipe import DIGITS
from tintray.models import quiet_transformers

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
    found = train_expert(zoo, BAD, DIGITS)["accuracy"]
    np.savez(path, **data | {"y_train": right})
    return found


def main() -> None:
    """Print one row per filter and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.3)
    arguments = parser.parse_args()
    quiet_transformers()
    with TemporaryDirectory(prefix="tintray-bad-expert-") as scratch:
        zoo = build(Path(scratch) / "zoo", workers=1)
        expert = corrupt(zoo, arguments.share)
        print(f"the bad expert: {expert:.1%} on its test set", flush=True)
        job = zoo / "job.yaml"
        job.write_text(job_file("digits", DIGITS.tasks))
        result: dict[str, dict[str, float]] = {}
        for name in FILTERS:
            runs = [
                tintray.run(
                    tintray.load_spec(
                        job,
                        [
                            f"objective.filter={name}",
                            f"fit.rounds={arguments.rounds}",
                            f"fit.seed={seed}",
                            f"store={scratch}/store",
                            "cluster.workers=0",
                        ],
                    )
                )
                for seed in range(arguments.seeds)
            ]
            bad = [task for run in runs for task in run.tasks if task.name == BAD]
            good = [task for run in runs for task in run.tasks if task.name != BAD]
            result[name] = {
                "bad": statistics.mean(task.merged for task in bad),
                "others": statistics.mean(task.merged for task in good),
                "kept": statistics.mean(task.kept for task in bad),
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
