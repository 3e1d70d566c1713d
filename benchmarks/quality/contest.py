"""The tables: rows of a zoo, and tintray beside its rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from benchmarks.quality.compressed import MASKED, SCHEMES
from benchmarks.quality.measure import Bench, Measured
from benchmarks.quality.rows import ADAMERGING, HEAD, LADDER, LOOP, ROWS, row
from benchmarks.quality.tables import COLUMNS, agreed, line, reached
from benchmarks.quality.trials import RATES, Axis, tuned
from benchmarks.quality.untrained import Rivals
from benchmarks.quality.zoos import ZOOS, Zoo
from tintray.checkpoints.model_folder import open_model_folder
from tintray.models.loading import load_base
from tintray.tinting.site_search import candidates

SHARE = 0.005  # of the bytes of a float32 backbone: what tintray's small row may take
CURVE = (15, 30, 60, 100, 150, 300)
TARGETS = (0.9, 0.95, 0.98)


class Contest:
    """Rows that are measured once, and the tables that they stand in."""

    def __init__(self, bench: Bench, seeds: int) -> None:
        self.bench, self.seeds = bench, seeds
        self.measured: dict[tuple[str, str], list[Measured]] = {}

    def runs(self, zoo: str, name: str, seeds: int | None = None) -> list[Measured]:
        """A row over its seeds."""
        if (zoo, name) not in self.measured:
            found = row(name)
            assert found is not None, name
            runs = [self.bench.run(ZOOS[zoo], found[1], s) for s in range(seeds or self.seeds)]
            self.measured[zoo, name] = runs
        return self.measured[zoo, name]

    def zoo(self, name: str, rows: Sequence[str]) -> None:
        """Rows of a zoo."""
        _head(ZOOS[name].title, COLUMNS)
        for chosen in dict.fromkeys(rows):
            found = row(chosen)
            assert found is not None, chosen
            _say(line(found[0], self.runs(name, chosen)))

    def floor(self, zoos: Iterable[str]) -> float:
        """Points of agreement between the small row and the best data-free method, the worst."""
        _head("The floor: agreement on test examples", "| zoo | tintray | best | method | points |")
        worst = float("inf")
        for name in zoos:
            ours = agreed(self.runs(name, "small"))
            rivals = {n: found.agreed for n, found in Rivals(self.bench, ZOOS[name]).methods()}
            best = max(rivals, key=lambda n: rivals[n])
            points = 100 * (ours - rivals[best])
            worst = min(worst, points)
            _say(
                f"| {name} | {100 * ours:.2f} % | {100 * rivals[best]:.2f} % | {best} "
                f"| {points:+.2f} |"
            )
        return worst


def published(contest: Contest) -> None:
    """What each ingredient brings; rivals have one seed."""
    _head("From the published loop to tintray, hard zoo", COLUMNS)
    for name, (label, _) in LADDER.items():
        _say(line(label, contest.runs("hard", name, 1)))
    _say(line(ROWS["small"][0], contest.runs("hard", "small")))


def compressed(contest: Contest) -> None:
    """Experts in few bytes: as many as tintray's, and in their own size."""
    _head("Compressed experts, hard zoo", COLUMNS)
    rivals = Rivals(contest.bench, ZOOS["hard"])
    for name, scheme in SCHEMES.items():
        for share in (SHARE, scheme.natural):
            _say(line(f"{scheme.label}, {100 * share:.3g} %", [rivals.compressed(name, share)]))
    for name in MASKED:
        _say(line(f"{name.replace('_', ' ')}, a bit a number", [rivals.masked(name)]))
    _say(line(ROWS["small"][0], contest.runs("hard", "small")))


def untrained(contest: Contest) -> None:
    """Merging methods that read no data, the best first."""
    _head("Methods that read no data, hard zoo, each at its best scale", COLUMNS)
    found = dict(Rivals(contest.bench, ZOOS["hard"]).methods())
    for name in sorted(found, key=lambda name: -found[name].kept):
        _say(line(name.replace("_", " "), [found[name]]))


def speed(contest: Contest) -> None:
    """Processor time to a share of the experts: fits of several lengths, interpolated."""
    most = contest.bench.rounds or CURVE[-1]
    lengths = sorted({max(1, most * each // CURVE[-1]) for each in CURVE})
    _head("Speed, hard zoo", "| rounds | " + " | ".join(label for label, _ in _RACERS) + " |")
    curves: list[dict[int, Measured]] = [{} for _ in _RACERS]
    for rounds in lengths:
        bench = replace(contest.bench, rounds=rounds)
        for curve, (_, overrides) in zip(curves, _RACERS, strict=True):
            curve[rounds] = bench.run(ZOOS["hard"], overrides)
        cells = [f"{100 * c[rounds].kept:.1f} %, {c[rounds].seconds:.0f} s" for c in curves]
        _say(f"| {rounds} | {' | '.join(cells)} |")
    for target in TARGETS:
        times = [reached(curve, target) for curve in curves]
        cells = ["not reached" if t is None else f"{t:.0f} s" for t in times]
        _say(f"| to {100 * target:.0f} % | {' | '.join(cells)} |")


_RACERS = (
    ("tintray", ROWS["small"][1]),
    ("published loop, tuned, same sites", LADDER["sites"][1]),
    ("published loop, tuned, head", LADDER["tuned"][1]),
)


def placement(contest: Contest) -> None:
    """A short fit at every candidate site, and what ``auto`` finds."""
    zoo, bench = ZOOS["hard"], replace(contest.bench, rounds=contest.bench.rounds or 60)
    settings = LADDER["head"][1][1:]
    report = bench.placement(zoo, ("tint.sites=auto", *settings))
    _head("Where to tint, hard zoo", "| site | kept |")
    shares = {}
    for site in _sites(zoo, bench):
        shares[site] = bench.run(zoo, (f"tint.sites={site}", *settings)).kept
        chosen = ", found by `auto`" if site == report["site"] else ""
        _say(f"| {site}{chosen} | {100 * shares[site]:.1f} % |")
    gap = 100 * (max(shares.values()) - shares[report["site"]])
    _say(f"\n`auto` lost {gap:.2f} points, for {100 * report['cost_share']:.1f} % of the passes.")


def _sites(zoo: Zoo, bench: Bench) -> list[str]:
    spec = bench.spec(zoo, (), 0)
    first = open_model_folder(str(spec.tasks[0].expert))
    base = load_base(open_model_folder(str(spec.base)), like=first)
    return [site.name for site in candidates(base)]


def tuning(contest: Contest) -> None:
    """The searches behind TUNED, TUNED_SITES and TUNED_ADAMERGING."""
    scale = Axis("merge.scale", 0.1, 0.5)
    for label, settled, axes in (
        ("the published loop, head", (*HEAD, *LOOP), RATES),
        ("the published loop at the sites of tintray", LOOP, RATES),
        ("AdaMerging", ADAMERGING, (Axis("fit.coefficient_lr", 1e-3, 10**0.5), scale)),
    ):
        _say(f"\n{label}: agreement on held-back pool examples")
        found, trials = tuned(contest.bench, ZOOS["hard"], settled, axes)
        _say(f"best of {trials} trials: {' '.join(found)}")


TABLES: Mapping[str, Callable[[Contest], object]] = {
    "published": published,
    "compressed": compressed,
    "untrained": untrained,
    "speed": speed,
    "floor": lambda contest: contest.floor(ZOOS),
    "placement": placement,
    "tuning": tuning,
}


def _head(title: str, columns: str) -> None:
    _say(f"\n### {title}\n\n{columns}\n{'|---' * (columns.count('|') - 1)}|")


def _say(text: str) -> None:
    print(text, flush=True)
