"""The README's tables of what a merge keeps: a hard zoo, a mild one, and where to tint.

    python -m benchmarks.quality [--rounds 300] [--seeds 3] [--mild DIR] [--placement]
                                 [--rivals all] [--store FOLDER]

The hard zoo is that of ``examples/ten-scripts.yaml``; its settings are the default configuration.
Every row learns from the same pools, with the same rounds of 16 images per task. The mild zoo is
what ``tintray zoo scripts DIR`` made. Settings were chosen by agreement on adaptation pools; the
test sets serve for these tables alone. The last line is one JSON object; what was not asked for is
null in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tintray
from jobs.results import MergeSummary
from tintray.checkpoints import open_checkpoint
from tintray.models import load_base
from tintray.placement import candidates

JOB = Path(__file__).parent.parent / "examples" / "ten-scripts.yaml"

PUBLISHED = (
    "tint.site=head",
    "objective.labels=hard",
    "fit.updates=in_turn",
    "fit.schedule=constant",
    "fit.coefficient_lr=0.01",
    "fit.tint_lr=0.01",
    "fit.correction_lr=0",
    "merge.bounds=[0, 1]",
)
"""The released loop: head, hard labels, agreement filter, each task in turn, Adam 1e-2, Λ in
[0, 1]."""

HEAD = ("tint.site=head", "fit.tint_lr=0.01")
LAST_BLOCK = ("tint.site=vit.layers.5",)
ALONE = ("tint.site=head", "tint.learned=false", "fit.correction_lr=0")


@dataclass(frozen=True)
class Zoo:
    """A job file, and what is laid over it in every row."""

    job: Path
    common: tuple[str, ...]

    def run(self, overrides: Sequence[str], rounds: int, seed: int) -> MergeSummary:
        """One job on the zoo."""
        given = (*self.common, *overrides, f"fit.rounds={rounds}", f"fit.seed={seed}")
        return tintray.run(tintray.load_spec(self.job, given))


@dataclass(frozen=True)
class Row:
    """Several seeds of one way to merge: shares of 1, and seconds of fitting."""

    accuracy: float
    normalised: float
    std: float
    seconds: float
    share: float

    @classmethod
    def of(cls, runs: Sequence[MergeSummary]) -> Row:
        """Mean over runs, and the standard deviation of their normalised accuracy."""
        normalised = [run.normalised_accuracy or 0.0 for run in runs]
        return cls(
            statistics.mean(run.average for run in runs),
            statistics.mean(normalised),
            statistics.stdev(normalised) if len(runs) > 1 else 0.0,
            statistics.median(run.seconds["fitting"] for run in runs),
            runs[0].tint_share,
        )

    def line(self, name: str) -> str:
        """As a row of a markdown table."""
        spread = f" ± {100 * self.std:.1f}" if self.std else ""
        return (
            f"| {name} | {100 * self.accuracy:.1f} | {100 * self.normalised:.1f}{spread} % | "
            f"{100 * self.share:.2g} % | {self.seconds:.0f} s |"
        )

    def to_json(self) -> dict[str, float]:
        """For the last line."""
        return {
            "accuracy": self.accuracy,
            "normalised_accuracy": self.normalised,
            "std": self.std,
            "seconds": self.seconds,
        }


def table(zoo: Zoo, rounds: int, seeds: int, rivals: Sequence[str]) -> dict[str, Any]:
    """Print the rows of one zoo as they are done; the same as JSON types."""
    print("| method | accuracy | of the experts' | extra per task | fit |")
    print("|---|---|---|---|---|")
    found: dict[str, Any] = {}

    def measured(name: str, label: str, overrides: Sequence[str], count: int = rounds) -> Row:
        runs = [zoo.run(overrides, count, seed) for seed in range(seeds)]
        row = Row.of(runs)
        print(row.line(label), flush=True)
        found[name] = row.to_json() | {"rounds": count}
        found.setdefault("_merge", f"{runs[0].name}/{runs[0].version}")
        return row

    default = measured("default", "**tintray**", ())
    measured("head", "tintray, head", HEAD)
    measured("last_block", "tintray, last block", LAST_BLOCK)
    published = measured("published", "the published loop, head", PUBLISHED)
    same_time = max(1, round(rounds * default.seconds / published.seconds))
    measured("published_same_time", "the published loop, same time", PUBLISHED, same_time)
    measured("coefficients", "coefficients alone", ALONE)
    found["baselines"] = baselines(zoo, found.pop("_merge"), rivals)
    return found


def baselines(zoo: Zoo, merge: str, rivals: Sequence[str]) -> dict[str, Any]:
    """Average and normalised accuracy of the experts and of other merging methods."""
    places = dict(text.split("=", 1) for text in zoo.common if "=" in text)
    compared = tintray.compare(
        merge, store=places["store"], catalog=places["catalog"], methods=list(rivals) or None
    )
    found = {}
    for method, average in compared.averages.items():
        if method != "merge":
            normalised = compared.normalised[method]
            print(f"| {method} | {100 * average:.1f} | {100 * normalised:.1f} % | | |", flush=True)
            found[method] = {"accuracy": average, "normalised_accuracy": normalised}
    return found


def placement(zoo: Zoo, rounds: int) -> tuple[float, float]:
    """Points of agreement lost by the site that ``auto`` finds, and its share of the search's cost.

    The best site is that of fits at every candidate, by the same measure on the same test sets.
    """
    found = zoo.run(("tint.site=auto",), rounds, 0)
    report = tintray.load(found.url).manifest["placement"]
    spec = tintray.load_spec(zoo.job, zoo.common)
    first = open_checkpoint(Path(str(spec.tasks[0].expert)))
    base = load_base(open_checkpoint(Path(str(spec.base))), like=first)
    accuracy = {report["site"]: found.average}
    for site in candidates(base):
        if site.name not in accuracy:
            accuracy[site.name] = zoo.run((f"tint.site={site.name}",), rounds, 0).average
        print(f"| tinted at {site.name} | {100 * accuracy[site.name]:.1f} |", flush=True)
    gap = 100 * (max(accuracy.values()) - accuracy[report["site"]])
    return gap, report["cost_share"]


def _zoo(job: Path, store: str) -> Zoo:
    return Zoo(job, (f"store={store}", f"catalog=sqlite:///{store}/catalog.db"))


def main() -> None:
    """Print markdown tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mild", type=Path, help="the folder that `tintray zoo scripts` made")
    parser.add_argument("--placement", action="store_true", help="also try every site")
    parser.add_argument("--rivals", nargs="*", default=[], help="merging methods, or all")
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="tintray-quality-") as scratch:
        store = str((arguments.store or Path(scratch)).resolve())
        started = time.perf_counter()
        rows = arguments.rounds, arguments.seeds, arguments.rivals
        result: dict[str, Any] = {"hard": table(_zoo(JOB, store), *rows), "mild": None}
        if arguments.mild:
            print()
            result["mild"] = table(_zoo(arguments.mild / "job.yaml", store), *rows)
        found: Mapping[str, Any] = dict.fromkeys(("placement_gap_points", "placement_cost_share"))
        if arguments.placement:
            gap, share = placement(_zoo(JOB, store), arguments.rounds)
            found = {"placement_gap_points": gap, "placement_cost_share": share}
        result |= found
        result["seconds"] = time.perf_counter() - started
    print(json.dumps(result))


if __name__ == "__main__":
    main()
