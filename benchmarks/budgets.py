"""Quality over budget: what a merge keeps when each task may own 0.05 % to 16 % of the backbone.

    python -m benchmarks.budgets [--zoo hard] [--zoos DIR] [--rounds 60] [--seed 0]
                                 [--budgets 0.5% 2% ...] [--store DIR] [--plot docs/budget.svg]
    python -m benchmarks.budgets --round MERGE    # what rounding costs a merge stored in 32 bits

A row has what ``tint.budget`` chose, what a task owns in the mean (head included, in bytes), how
often the merge answers as the experts do on pool examples that were held back, and its accuracy
over theirs on the test sets. Finished rows are kept in --store, as those of ``benchmarks.quality``.
The last line is one JSON object; ``fall`` is by how many points of held-back agreement, at most, a
larger budget is worse than a smaller one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

import tintray
from benchmarks.quality.measure import Bench
from benchmarks.quality.zoos import ZOOS
from tintray.jobs.engine.finding import load_merge
from tintray.jobs.runs.evaluate import Evaluator
from tintray.jobs.runs.summaries import means
from tintray.numerics.choices import Bits
from tintray.published.merge import Merge
from tintray.published.signatures import digest
from tintray.tasks.evaluation import mean
from tintray.tinting.stored_tints import decode, encode

BUDGETS = ("0.05%", "0.1%", "0.2%", "0.5%", "1%", "2%", "5%", "16%")


@dataclass(frozen=True)
class Point:
    """What one budget bought, and what it kept: shares of 1."""

    budget: str
    sites: str
    bits: list[int]
    bytes_share: float
    held_back: float
    normalised: float


def point(bench: Bench, zoo: str, budget: str, seed: int) -> Point:
    """One row: a job, or what a call before this one kept of it."""
    spec = bench.spec(ZOOS[zoo], (f"tint.budget={budget}",), seed)

    def fit() -> dict[str, Any]:
        found = tintray.run(spec).summary()
        bits = sorted({task.tint_bits for task in found.tasks})
        held_back = mean([task.held_back or 0.0 for task in found.tasks])
        kept = found.normalised_accuracy or 0.0
        return asdict(Point(budget, found.site, bits, found.tint_bytes_share, held_back, kept))

    key = bench.key(spec, f"{zoo} budget")
    return Point(**bench.kept.once(key, f"{zoo} budget {budget} seed={seed}", fit))


class Rounded(Merge):
    """A merge whose tints are rounded as they are read."""

    bits: Bits = 32

    def tint(self, task: str) -> dict[str, Tensor]:
        """A task's private tensors, rounded."""
        return decode(encode(super().tint(task), self.bits))


class RoundedEvaluator(Evaluator):
    """Measures such a merge."""

    def __init__(self, known: Merge, bits: Bits) -> None:
        super().__init__(known.url, digest(known.manifest), known.url.partition("/merges/")[0])
        self._merge = Rounded(known.manifest, known.fetch, known.url)
        self._merge.bits = bits


def rounding(url: str) -> dict[int, dict[str, float]]:
    """By bits, what rounding changes of a merge: shares of 1; prints a row for each."""
    merge = load_merge(url)
    manifest = merge.manifest
    found: dict[int, dict[str, float]] = {}
    bits: Bits
    for bits in (8, 4, 16):
        evaluator = RoundedEvaluator(merge, bits)
        scores = [evaluator.evaluate(task.name) for task in manifest.tasks]
        each = zip(scores, manifest.tasks, strict=True)
        of_all = means(manifest.tasks, scores)
        before = manifest.metrics.normalised_accuracy or 0.0
        found[bits] = {
            "agreement": of_all.agreement - manifest.metrics.agreement,
            "worst": min(score.agreement - task.score.agreement for score, task in each),
            "normalised_accuracy": (of_all.normalised_accuracy or 0.0) - before,
        }
        figures = " | ".join(f"{100 * value:+.2f}" for value in found[bits].values())
        print(f"| {bits} bits | {figures} |", flush=True)
    return found


def draw(points: Sequence[Point], path: Path, about: str) -> None:
    """What is kept over what a task owns, with the sites beside each point."""
    from matplotlib.figure import Figure

    ink, kept, agreed = "#333333", "#1b7f5c", "#5b6b7a"
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shares = [100 * row.bytes_share for row in points]
    accuracy = [100 * row.normalised for row in points]
    axes.plot(shares, accuracy, "o-", color=kept, label="of the experts' accuracy")
    held_back = [100 * row.held_back for row in points]
    axes.plot(shares, held_back, "o--", color=agreed, label="held-back agreement")
    for share, height, row in zip(shares, held_back, points, strict=True):
        text = "\n".join([row.budget, *row.sites.split(", "), f"{row.bits} bits"])
        offset: dict[str, Any] = {
            "textcoords": "offset points",
            "fontsize": 5,
            "va": "top",
            "ha": "center",
        }
        axes.annotate(text, (share, height), (0, -6), **offset)
    axes.margins(0.08, 0.25)
    axes.set_xscale("log")
    axes.set_xlabel("bytes that a task owns, head included, in % of the backbone's")
    axes.set_ylabel("%")
    axes.set_title(about, color=ink, fontsize=9)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def fall(points: Sequence[Point]) -> float:
    """The most points of held-back agreement by which a larger budget is worse than a smaller."""
    best, worst = 0.0, 0.0
    for row in points:
        best = max(best, row.held_back)
        worst = max(worst, best - row.held_back)
    return 100 * worst


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a markdown table and, last, one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", choices=ZOOS, default="hard")
    parser.add_argument("--zoos", type=Path, default=Path("zoo"), help="the folder of the zoos")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, help="from small to large")
    parser.add_argument("--store", type=Path, help="keep everything here, and go on from there")
    parser.add_argument("--plot", type=Path, help="draw the curve into this file")
    parser.add_argument("--round", metavar="MERGE", help="measure what rounding costs instead")
    given = parser.parse_args(arguments)
    if given.round:
        print("| stored in | agreement | the worst task's | of the experts' |\n|---|---|---|---|")
        print(json.dumps({"rounding": rounding(given.round)}))
        return
    print("| budget | sites | bits | owned per task | held-back agreement | of the experts' |")
    print("|---|---|---|---|---|---|", flush=True)
    points = []
    with TemporaryDirectory(prefix="tintray-budgets-") as scratch:
        store = (given.store or Path(scratch)).resolve()
        bench = Bench(given.zoos.resolve(), store, given.rounds)
        for budget in given.budgets:
            row = point(bench, given.zoo, budget, given.seed)
            points.append(row)
            print(
                f"| {row.budget} | {row.sites} | {' or '.join(map(str, row.bits))} "
                f"| {100 * row.bytes_share:.3g} % | {100 * row.held_back:.1f} "
                f"| {100 * row.normalised:.1f} % |",
                flush=True,
            )
    if given.plot:
        draw(points, given.plot, f"{ZOOS[given.zoo].title}; {given.rounds} rounds")
    print(json.dumps({"points": [asdict(row) for row in points], "fall": fall(points)}))


if __name__ == "__main__":
    main()
