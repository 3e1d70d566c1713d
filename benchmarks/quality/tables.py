"""Tables of what was measured, as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.quality.measure import Measured

COLUMNS = (
    "| method | accuracy | of the experts' | test sampling | worst task "
    "| agreement | extra per task | bytes per task | fit |"
)


def line(label: str, runs: Sequence[Measured]) -> str:
    """A row: means over seeds ± their standard deviation, and the bootstrap's beside it.

    The worst task is the one that the mean over seeds keeps least of; seconds are the median.
    """
    first = runs[0]
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    accuracy = f"{100 * statistics.mean(accuracies):.1f}" if accuracies else ""
    spread = f" ± {100 * statistics.stdev(run.kept for run in runs):.2f}" if len(runs) > 1 else ""
    sampled = [run.sampling for run in runs if run.sampling is not None]
    sampling = f"± {100 * statistics.mean(sampled):.2f}" if sampled else ""
    name, worst = worst_task(runs)
    seconds = statistics.median(run.seconds for run in runs)
    return (
        f"| {label} | {accuracy} | {100 * kept(runs):.2f}{spread} % | {sampling} "
        f"| {100 * worst:.0f} % {name} | {100 * agreed(runs):.2f} % | {100 * first.share:.2g} % "
        f"| {first.tint_bytes:,} | {f'{seconds:.0f} s' if seconds else ''} |"
    )


def kept(runs: Sequence[Measured]) -> float:
    """Normalised accuracy, the mean over seeds."""
    return statistics.mean(run.kept for run in runs)


def agreed(runs: Sequence[Measured]) -> float:
    """Agreement with the experts, the mean over seeds."""
    return statistics.mean(run.agreed for run in runs)


def worst_task(runs: Sequence[Measured]) -> tuple[str, float]:
    """The task of which least is kept, and how much."""
    shares = {
        name: statistics.mean(run.normalised[name] for run in runs) for name in runs[0].normalised
    }
    name = min(shares, key=lambda name: shares[name])
    return name, shares[name]


def figures(runs: Sequence[Measured]) -> dict[str, float]:
    """What the last line says of a row: shares of 1, and bytes."""
    return {
        "normalised_accuracy": round(kept(runs), 4),
        "extra": round(runs[0].share, 6),
        "extra_bytes": runs[0].tint_bytes,
    }


def reached(curve: Mapping[int, Measured], target: float) -> float | None:
    """Processor seconds at which a row keeps ``target`` of the experts.

    ``curve`` has fits of so many rounds, each with a schedule of its own; between two of them
    seconds are interpolated. None if no fit keeps as much.
    """
    before: tuple[float, float] | None = None
    for rounds in sorted(curve):
        kept, seconds = curve[rounds].kept, curve[rounds].seconds
        if kept >= target:
            if before is None or kept == before[0]:
                return seconds
            part = (target - before[0]) / (kept - before[0])
            return before[1] + part * (seconds - before[1])
        before = kept, seconds
    return None
