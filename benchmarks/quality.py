"""The README's tables of what a merge keeps: a hard zoo, a mild one, and where to tint.

    python -m benchmarks.quality [--rounds 300] [--seeds 3] [--only ROW ...] [--mild DIR]
                                 [--placement] [--rivals all] [--store FOLDER]

The hard zoo is that of ``examples/ten-scripts.yaml``; row ``small`` has its settings, on the mild
zoo too (``python -m benchmarks.zoos scripts DIR``). Every row learns from the same
pools, with the same rounds of 16 images per task. Settings were chosen by agreement on adaptation
pools; the test sets serve for these tables alone.

With ``--store`` every finished job is a line of ``runs.jsonl`` there, and is not run again: what
was stopped goes on, and several calls with different rows (``--only``) can run beside each other.
A job runs in this process on one core; its time is processor time of the fit. The last line is one
JSON object; what was not asked for is null in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tintray
from benchmarks.kept import Kept
from tintray.checkpoints.model_folder import open_model_folder
from tintray.jobs.events import PhaseStarted
from tintray.models.loading import load_base
from tintray.tinting.site_search import candidates

JOB = Path(__file__).parent.parent / "examples" / "ten-scripts.yaml"

PUBLISHED = (
    "tint.sites=head",
    "objective.labels=hard",
    "objective.temperature=1",
    "fit.updates=in_turn",
    "fit.schedule=constant",
    "fit.warmup=0",
    "fit.coefficient_lr=0.01",
    "fit.tint_lr=0.01",
    "fit.correction_lr=0",
    "merge.bounds=[0, 1]",
    "objective.filter=agreement",
)
"""The released loop: head, hard labels, agreement filter, each task in turn, Adam 1e-2, Λ in
[0, 1]."""

FIRST, LAST = "tint.sites=FIRST", "tint.sites=LAST"
"""The first and the last block of whichever model the zoo has."""

SMALL = (
    "tint.sites=[{site: prompt, rank: 16}, head]",
    "merge.scale=0.1",
    "fit.correction_lr=0.004",
    "fit.schedule=linear",
    "objective.temperature=4",
    "objective.filter=none",
)
"""What ``examples/ten-scripts.yaml`` says."""

ADAM = ("fit.correction_optimiser=adam", "fit.schedule=cosine", "objective.filter=agreement")
OURS = (
    "merge.scale=0.1",
    "fit.tint_lr=0.0005",
    "fit.correction_lr=0.001",
    "objective.temperature=4",
    *ADAM,
)
"""With the first block tinted."""

START = "merge.scale=0.3"
"""Where coefficients begin in the released code, and by default; better for a tinted head."""

ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "small": ("**tintray**, prompt and head", SMALL),
    "default": ("tintray, first block", (FIRST, *OURS)),
    "head": (
        "tintray, head",
        (
            *("tint.sites=head", START, "fit.tint_lr=0.01"),
            *("fit.correction_lr=0.001", "objective.temperature=1", *ADAM),
        ),
    ),
    "published": ("the published loop, head", (*PUBLISHED, START)),
    "published_same_time": ("the published loop, same time", (*PUBLISHED, START)),
    "last_block": ("tintray, last block", (LAST, *OURS, START, "fit.tint_lr=0.002")),
    "coefficients": (
        "coefficients alone",
        (
            "tint.sites=head",
            "tint.learned=false",
            START,
            "fit.correction_lr=0",
            "objective.temperature=1",
            *ADAM,
        ),
    ),
}
"""Row → its label in the table, and its settings."""


@dataclass(frozen=True)
class Run:
    """What one job came to: shares of 1, and processor seconds of its fit."""

    accuracy: float
    normalised: float
    share: float  # parameters that a task owns, head included, over those of the backbone
    seconds: float
    merge: str
    placement: dict[str, Any] | None = None


@dataclass(frozen=True)
class Zoo:
    """A job file, and the folder in which everything about it is kept."""

    job: Path
    store: Path

    @property
    def catalog(self) -> str:
        """The database of its jobs and merges."""
        return f"sqlite:///{self.store}/catalog.db"

    @cached_property
    def sites(self) -> list[str]:
        """The head and every block, in order."""
        spec = self.spec(())
        first = open_model_folder(Path(str(spec.tasks[0].expert)))
        base = load_base(open_model_folder(Path(str(spec.base))), like=first)
        return [site.name for site in candidates(base)]

    def spec(self, overrides: Sequence[str]) -> tintray.JobSpec:
        """The job with ``overrides``, kept here and run in this process."""
        kept = (f"store={self.store}", f"catalog={self.catalog}", "cluster.workers=0")
        return tintray.load_spec(self.job, (*overrides, *kept))

    def run(self, overrides: Sequence[str], rounds: int, seed: int) -> Run:
        """One job, or what a call before this one kept of it."""
        blocks = {FIRST: self.sites[1], LAST: self.sites[-1]}
        overrides = [f"tint.sites={blocks[o]}" if o in blocks else o for o in overrides]
        spec = self.spec((*overrides, f"fit.rounds={rounds}", f"fit.seed={seed}"))
        note = f"{self.job.parent.name}/{self.job.name} {' '.join(overrides)} {rounds} {seed}"
        return Run(**Kept(self.store).once(spec.digest(), note, lambda: asdict(job(spec))))

    def compared(self, overrides: Sequence[str], rounds: int, rivals: Sequence[str]) -> Any:
        """Averages and normalised accuracy of ``rivals``, beside the merge of a job."""
        merge = self.run(overrides, rounds, 0).merge
        key = f"{self.spec(()).digest()} compared {' '.join(rivals)}"

        def compare() -> dict[str, Any]:
            found = tintray.load(merge, store=str(self.store), catalog=self.catalog).compare(
                list(rivals) or None
            )
            return {"averages": dict(found.averages), "normalised": dict(found.normalised)}

        return Kept(self.store).once(key, f"{self.job.parent.name} compared", compare)


def job(spec: tintray.JobSpec) -> Run:
    """Run a job in this process."""
    began: dict[str, float] = {}

    def on_event(event: object) -> None:
        if isinstance(event, PhaseStarted):
            began[event.phase] = time.process_time()

    merge = tintray.run(spec, on_event=on_event)
    found = merge.summary()
    return Run(
        found.average,
        found.normalised_accuracy or 0.0,
        found.tint_share,
        began["evaluating"] - began["fitting"],
        f"{found.name}/{found.version}",
        merge.manifest.placement,
    )


def summary(runs: Sequence[Run], rounds: int) -> dict[str, float]:
    """Mean over seeds, the standard deviation of normalised accuracy, and the median time."""
    normalised = [run.normalised for run in runs]
    return {
        "accuracy": statistics.mean(run.accuracy for run in runs),
        "normalised_accuracy": statistics.mean(normalised),
        "std": statistics.stdev(normalised) if len(runs) > 1 else 0.0,
        "seconds": statistics.median(run.seconds for run in runs),
        "extra": runs[0].share,
        "rounds": rounds,
        "seeds": len(runs),
    }


def line(label: str, row: dict[str, float]) -> str:
    """A row of a markdown table."""
    spread = f" ± {100 * row['std']:.1f}" if row["seeds"] > 1 else ""
    return (
        f"| {label} | {100 * row['accuracy']:.1f} | {100 * row['normalised_accuracy']:.1f}"
        f"{spread} % | {100 * row['extra']:.2g} % | {row['seconds']:.0f} s |"
    )


def table(
    zoo: Zoo, rounds: int, seeds: int, rivals: Sequence[str], only: Sequence[str]
) -> dict[str, Any]:
    """Print the rows of one zoo as they are done; the same as JSON types."""
    print("| method | accuracy | of the experts' | extra per task | fit |")
    print("|---|---|---|---|---|", flush=True)
    found: dict[str, Any] = {}
    for name, (label, overrides) in ROWS.items():
        if name not in only:
            continue
        count = same_time(zoo, rounds) if name == "published_same_time" else rounds
        found[name] = summary([zoo.run(overrides, count, seed) for seed in range(seeds)], count)
        print(line(label, found[name]), flush=True)
    if "baselines" in only:
        found["baselines"] = baselines(zoo, rounds, rivals)
    return found


def same_time(zoo: Zoo, rounds: int) -> int:
    """Rounds of the published loop in the processor time of the default configuration."""
    default, published = (zoo.run(ROWS[name][1], rounds, 0) for name in ("default", "published"))
    return max(1, round(rounds * default.seconds / published.seconds))


def baselines(zoo: Zoo, rounds: int, rivals: Sequence[str]) -> dict[str, Any]:
    """Average and normalised accuracy of the experts and of other merging methods."""
    compared = zoo.compared(ROWS["default"][1], rounds, rivals)
    found = {}
    for method, average in compared["averages"].items():
        if method != "merge":
            normalised = compared["normalised"][method]
            print(f"| {method} | {100 * average:.1f} | {100 * normalised:.1f} % | | |", flush=True)
            found[method] = {"accuracy": average, "normalised_accuracy": normalised}
    return found


def placement(zoo: Zoo, rounds: int) -> tuple[float, float]:
    """Points lost by the site that ``auto`` finds, and its share of the search's cost.

    The best site is that of fits at every candidate, by accuracy on the same test sets.
    """
    settings = (*OURS, "fit.tint_lr=null")  # the default of each site
    report = zoo.run(("tint.sites=auto", *settings), rounds, 0).placement
    assert report is not None
    print("| site | accuracy |\n|---|---|")
    accuracy = {}
    for site in zoo.sites:
        accuracy[site] = zoo.run((f"tint.sites={site}", *settings), rounds, 0).accuracy
        chosen = ", found by `auto`" if site == report["site"] else ""
        print(f"| {site}{chosen} | {100 * accuracy[site]:.1f} |", flush=True)
    gap = 100 * (max(accuracy.values()) - accuracy[report["site"]])
    return gap, report["cost_share"]


def main() -> None:
    """Print markdown tables and, last, one JSON object."""
    every = (*ROWS, "baselines")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=every, choices=every, metavar="ROW")
    parser.add_argument("--mild", type=Path, help="what `benchmarks.zoos scripts` made")
    parser.add_argument("--placement", action="store_true", help="also try every site")
    parser.add_argument("--rivals", nargs="*", default=[], help="merging methods, or all")
    parser.add_argument("--store", type=Path, help="keep everything here, and go on from there")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="tintray-quality-") as scratch:
        store = (arguments.store or Path(scratch)).resolve()
        rows = arguments.rounds, arguments.seeds, arguments.rivals, arguments.only
        hard = Zoo(JOB, store)
        result: dict[str, Any] = {"hard": table(hard, *rows), "mild": None}
        if arguments.mild:
            print()
            result["mild"] = table(Zoo(arguments.mild / "job.yaml", store), *rows)
        gap, share = None, None
        if arguments.placement:
            print()
            gap, share = placement(hard, arguments.rounds)
    print(json.dumps(result | {"placement_gap_points": gap, "placement_cost_share": share}))


if __name__ == "__main__":
    main()
