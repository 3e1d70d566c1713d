"""The README's table of what a merge keeps, on the ten-scripts zoo.

    python -m benchmarks.quality [--rounds 300] [--seeds 1] [--store FOLDER]

Runs ``examples/ten-scripts.yaml`` several ways, all at the same rounds of 16 images, and measures
all on the same test sets. Settings were chosen by agreement on held-back pool examples; the test
sets serve for this table alone. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import tintray
from jobs.results import MergeSummary

JOB = Path(__file__).parent.parent / "examples" / "ten-scripts.yaml"

PUBLISHED = (
    "objective.labels=hard",
    "fit.updates=in_turn",
    "fit.schedule=constant",
    "fit.coefficient_lr=0.01",
    "fit.tint_lr=0.01",
    "merge.bounds=[0, 1]",
)
"""The released loop: hard labels, agreement filter, each task in turn, Adam 1e-2, Λ in [0, 1]."""

ROWS: Mapping[str, tuple[str, ...]] = {
    "coefficients alone": ("tint.learned=false",),
    "published loop, head": PUBLISHED,
    "tintray, head": (),
    "tintray, last block": ("tint.site=vit.layers.5",),
}


def run(overrides: tuple[str, ...], rounds: int, seed: int, store: str) -> MergeSummary:
    """One job on the zoo."""
    common = (
        f"fit.rounds={rounds}",
        f"fit.seed={seed}",
        f"store={store}",
        f"catalog=sqlite:///{store}/catalog.db",
    )
    return tintray.run(tintray.load_spec(JOB, (*overrides, *common)))


def baselines(merge: str, store: str) -> dict[str, tuple[float, float]]:
    """Average and normalised accuracy of what needs no fit."""
    table = tintray.compare(merge, store=store, catalog=f"sqlite:///{store}/catalog.db")
    return {
        method: (table.averages[method], table.normalised[method])
        for method in ("experts", "average", "task arithmetic")
    }


def line(name: str, average: float, normalised: float, share: str, seconds: str) -> str:
    """One row of the markdown table."""
    return f"| {name} | {100 * average:.1f} | {100 * normalised:.1f} % | {share} | {seconds} |"


def main() -> None:
    """Print a markdown table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--store", type=Path, default=None)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="tintray-quality-") as scratch:
        store = str((arguments.store or Path(scratch)).resolve())
        print("| method | accuracy | of the experts' | extra per task | fit |")
        print("|---|---|---|---|---|")
        result: dict[str, dict[str, float]] = {}
        for name, overrides in ROWS.items():
            runs = [
                run(overrides, arguments.rounds, seed, store) for seed in range(arguments.seeds)
            ]
            if not result:
                for method, (average, normalised) in baselines(
                    f"{runs[0].name}/{runs[0].version}", store
                ).items():
                    print(line(method, average, normalised, "", ""), flush=True)
                    result[method] = {"accuracy": average, "normalised_accuracy": normalised}
            normalised = [summary.normalised_accuracy or 0.0 for summary in runs]
            result[name] = {
                "accuracy": statistics.mean(summary.average for summary in runs),
                "normalised_accuracy": statistics.mean(normalised),
                "std": statistics.stdev(normalised) if len(runs) > 1 else 0.0,
            }
            share = f"{100 * runs[0].tint_share:.2g} %"
            seconds = f"{runs[0].seconds['fitting']:.0f} s"
            row = result[name]
            print(
                line(name, row["accuracy"], row["normalised_accuracy"], share, seconds), flush=True
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
