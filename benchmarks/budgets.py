"""Quality over budget: what a merge keeps when each task may own 0.05 % to 16 % of the backbone.

    python -m benchmarks.budgets [JOB] [--rounds 60] [--seed 0] [--budgets 0.5% 2% ...]
                                 [--store FOLDER] [--plot docs/budget.svg]
    python -m benchmarks.budgets --round MERGE    # what rounding costs a merge stored in 32 bits

Without JOB it is the hard zoo. A row has what ``tint.budget`` chose, what a task owns in the mean
(head included, in bytes), its test accuracy over the expert's, and how often the merge answers the
test images as the expert does. With ``--store`` finished rows are kept, and a call that was stopped
goes on. The last line is one JSON object: ``monotone`` says by how many points, at most, a larger
budget keeps less than a smaller one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

import tintray
from benchmarks.kept import Kept
from benchmarks.quality import JOB, SMALL, Zoo
from tintray.jobs.engine.finding import load_merge
from tintray.jobs.runs.evaluate import Evaluator
from tintray.jobs.runs.summaries import means
from tintray.numerics.choices import Bits
from tintray.published.merge import Merge
from tintray.tasks.evaluation import mean
from tintray.tinting.stored_tints import decode, encode

BUDGETS = ("0.05%", "0.1%", "0.2%", "0.5%", "1%", "2%", "5%", "16%")

SETTINGS = tuple(setting for setting in SMALL if not setting.startswith("tint.sites"))
"""All settings of the row ``small``, but for its sites."""


@dataclass(frozen=True)
class Point:
    """What one budget bought, and what it kept: shares of 1."""

    budget: str
    sites: str
    bits: list[int]
    bytes_share: float
    normalised: float
    agreement: float


def point(zoo: Zoo, budget: str, rounds: int, seed: int) -> Point:
    """One row: a job, or what a call before this one kept of it."""
    settings = (*SETTINGS, f"tint.budget={budget}", f"fit.rounds={rounds}", f"fit.seed={seed}")
    spec = zoo.spec(settings)

    def fit() -> dict[str, object]:
        found = tintray.run(spec).summary()
        bits = sorted({task.tint_bits for task in found.tasks})
        agreement = mean([task.agreement for task in found.tasks])
        kept = found.normalised_accuracy or 0.0
        row = Point(budget, found.site, bits, found.tint_bytes_share, kept, agreement)
        return asdict(row)

    return Point(**Kept(zoo.store).once(spec.digest(), f"budget {budget} {rounds} {seed}", fit))


class Rounded(Merge):
    """A merge whose tints are rounded as they are read."""

    bits: Bits = 32

    def tint(self, task: str) -> dict[str, Tensor]:
        """A task's private tensors, rounded."""
        return decode(encode(super().tint(task), self.bits))


class RoundedEvaluator(Evaluator):
    """Measures such a merge."""

    def __init__(self, url: str, bits: Bits) -> None:
        super().__init__(url, url.partition("/merges/")[0])
        known = self._merge
        self._merge = Rounded(known.manifest, known.fetch, known.url)
        self._merge.bits = bits


def rounding(url: str) -> dict[int, dict[str, float]]:
    """Agreement and normalised accuracy of a merge by bits; prints a row for each."""
    manifest, found = load_merge(url).manifest, {}
    for bits in (8, 4, 16):
        evaluator = RoundedEvaluator(url, bits)
        scores = [evaluator.evaluate(task.name) for task in manifest.tasks]
        each = zip(scores, manifest.tasks, strict=True)
        of_all = means(manifest.tasks, scores)
        found[bits] = {
            "agreement": of_all.agreement - manifest.metrics.agreement,
            "worst": min(score.agreement - task.score.agreement for score, task in each),
            "normalised_accuracy": (of_all.normalised_accuracy or 0.0)
            - (manifest.metrics.normalised_accuracy or 0.0),
        }
        figures = " | ".join(f"{100 * value:+.2f}" for value in found[bits].values())
        print(f"| {bits} bits | {figures} |", flush=True)
    return found


def draw(points: Sequence[Point], path: Path, about: str) -> None:
    """What is kept over what a task owns, with the sites beside each point."""
    from matplotlib.figure import Figure

    ink, line = "#333333", "#1b7f5c"
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shares = [100 * row.bytes_share for row in points]
    axes.plot(shares, [100 * row.normalised for row in points], "o-", color=line)
    for share, row in zip(shares, points, strict=True):
        bits = "/".join(map(str, row.bits))
        text = "\n".join([row.budget, *row.sites.split(", "), f"{bits} bits"])
        at = (share, 100 * row.normalised)
        axes.annotate(text, at, (4, -6), textcoords="offset points", fontsize=6, va="top")
    axes.set_xscale("log")
    axes.set_xlabel("bytes that a task owns, head included, in % of the backbone's")
    axes.set_ylabel("% of the experts' accuracy")
    axes.set_title(about, color=ink, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def fall(points: Sequence[Point]) -> float:
    """The most points of agreement by which a larger budget is worse than a smaller one."""
    best, worst = 0.0, 0.0
    for row in points:
        best = max(best, row.agreement)
        worst = max(worst, best - row.agreement)
    return 100 * worst


def main() -> None:
    """Print a markdown table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("job", nargs="?", type=Path, default=JOB)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", nargs="*", default=BUDGETS)
    parser.add_argument("--store", type=Path, help="keep everything here, and go on from there")
    parser.add_argument("--plot", type=Path, help="draw the curve into this file")
    parser.add_argument("--round", metavar="MERGE", help="measure what rounding costs instead")
    arguments = parser.parse_args()
    if arguments.round:
        print("| stored in | agreement | the worst task's | of the experts' |\n|---|---|---|---|")
        print(json.dumps({"rounding": rounding(arguments.round)}))
        return
    print("| budget | sites | bits | owned per task | of the experts' | agreement |")
    print("|---|---|---|---|---|---|", flush=True)
    points = []
    with TemporaryDirectory(prefix="tintray-budgets-") as scratch:
        zoo = Zoo(arguments.job, (arguments.store or Path(scratch)).resolve())
        for budget in arguments.budgets:
            row = point(zoo, budget, arguments.rounds, arguments.seed)
            points.append(row)
            print(
                f"| {row.budget} | {row.sites} | {'/'.join(map(str, row.bits))} "
                f"| {100 * row.bytes_share:.3g} % | {100 * row.normalised:.1f} % "
                f"| {100 * row.agreement:.1f} |",
                flush=True,
            )
    if arguments.plot:
        draw(points, arguments.plot, f"{arguments.job.stem}, {arguments.rounds} rounds")
    print(json.dumps({"points": [asdict(row) for row in points], "monotone": fall(points)}))


if __name__ == "__main__":
    main()
