"""Clusters that are not here: where time and bytes go, and what breaks first.

    python -m benchmarks.simulate                              # from the constants on record
    python -m benchmarks.simulate --measure rounds             # measures them anew; see below
    python -m benchmarks.simulate --measure coordinator loading catalog

A round is simulated as discrete events: merging, passes, messages, what is sent, projecting. Jobs
and clusters are in ``clusters``; what they assume is said there.

``rounds`` runs the members of a job on this machine (as ``benchmarks.scaling``), K = 8 to 512
tasks on one to four workers, and compares each round with the simulated one. ``coordinator`` runs
rounds of members that do nothing; ``loading`` has shards load task vectors from a bucket;
``catalog`` fills catalogs with merges. What is measured is written to ``measured.json`` beside this
file.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.simulate.clusters import (
    GIB,
    Cluster,
    Job,
    adapters_on_8b,
    experts_of_100m,
    on_a_card,
    round_of,
)
from benchmarks.simulate.fetching import fetch
from benchmarks.simulate.overhead import Coordinating, coordinating
from benchmarks.simulate.rounds import simulate

LAYOUTS = [(None, None, False), (64, None, True), (64, None, False), (64, 8, False)]
"""Task groups and shards (None: as a job has that names none), and how gradients are added."""
RECORD = Path(__file__).parent / "measured.json"
SIZES = [(8, 1), (8, 2), (32, 3), (32, 4), (128, 1), (128, 4), (512, 2)]
"""Tasks and workers; eight tasks make two groups, so that more workers would have none."""


def recorded() -> dict[str, Any]:
    """What was measured, by what ``--measure`` calls it."""
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


def measure(what: list[str], repeats: int) -> None:
    """Measure some of it anew, and write it down."""
    record = recorded() if RECORD.is_file() else {}
    if "coordinator" in what:
        costs, taken = coordinating()
        record["coordinator"] = {"costs": asdict(costs), "taken": taken}
    if "rounds" in what:
        from benchmarks.simulate.measured import compare

        record["rounds"], costs = [], Coordinating(**record["coordinator"]["costs"])
        for tasks, workers in sorted(SIZES, reverse=True):
            row = compare(tasks, workers, max(1, repeats * 32 // max(tasks, 32)))
            record["rounds"].append(row)
            print(_line(row, costs), flush=True)
            RECORD.write_text(json.dumps(record))
    if "loading" in what:
        from benchmarks.simulate.loading import load

        record["loading"] = [load(60, shards) for shards in (1, 4)]
    if "catalog" in what:
        from benchmarks.simulate import catalog

        record["catalog"] = {str(n): catalog.measure(n) for n in (1_000, 10_000, 100_000)}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    for name in {"coordinator", "loading", "catalog"}.intersection(what):
        print(name, json.dumps(record[name], indent=1))


def _line(row: dict[str, Any], costs: Coordinating) -> str:
    from benchmarks.simulate.measured import predicted

    seconds = predicted(row, costs)
    return (
        f"K = {row['tasks']:4}  {row['workers']} workers  measured {row['measured']:8.3f} s  "
        f"simulated {seconds:8.3f} s  {seconds / row['measured'] - 1:+.1%}"
    )


def table(job: Job, cluster: Cluster, of_coordinator: Coordinating) -> dict[str, float]:
    """Print where the time of a round goes, laid out in a few ways; the seconds of each."""
    memory = cluster.memory / GIB
    print(f"\n{job.name}, {cluster.cards} cards of {memory:.0f} GiB on {cluster.nodes} nodes\n")
    print(
        "| tasks a round | groups | shards | gradients | s | passes | merge, project | sent | ",
        end="",
    )
    print("coordinator | GB between nodes | GiB on a card |\n" + "|---" * 11 + "|")
    found = {}
    for drawn in (job.tasks, cluster.cards):
        for groups, shards, one_by_one in LAYOUTS:
            changed = replace(job, groups=groups, shards=shards, drawn=drawn)
            given, costs = round_of(changed, cluster, of_coordinator)
            simulated = simulate(replace(given, one_by_one=one_by_one), costs)
            time = simulated.timeline
            cards, kinds = len(given.workers), time.by_kind
            parts = [
                kinds["passes"] / cards,
                (kinds["merge"] + kinds["project"]) / given.shards,
                (kinds["send θ"] + kinds["send gradients"]) / 2 / given.nodes,
                time.busy["driver"],
            ]
            adding = "one by one" if one_by_one else "together"
            cells = [f"{drawn:,}", str(changed.group_count()), str(given.shards), adding]
            cells += [f"{seconds:.3g}" for seconds in (time.seconds, *parts)]
            cells += [f"{simulated.sent / 1e9:,.0f}", f"{on_a_card(changed, cluster) / GIB:.0f}"]
            print(f"| {' | '.join(cells)} |")
            found[", ".join(cells[:4])] = round(time.seconds, 4)
    return found


def fetching(job: Job, cluster: Cluster) -> None:
    """Print how long task vectors are fetched before the first round, as it was and as it is."""
    for together in (False, True):
        time, size = fetch(job, cluster, together=together)
        way = "each shard alone" if not together else "shards of a node together"
        print(
            f"{way}: {time.seconds:,.0f} s until all have every task vector, {size / 1e12:.1f} TB"
        )


def main() -> None:
    """Print tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    known = ["coordinator", "rounds", "loading", "catalog"]
    parser.add_argument("--measure", nargs="+", choices=known, default=[])
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.repeats)
    record = recorded()
    costs = Coordinating(**record["coordinator"]["costs"])
    for row in record["rounds"]:
        print(_line(row, costs))
    result, cluster = {}, Cluster()
    for job in (adapters_on_8b(), experts_of_100m()):
        result[job.name] = table(job, cluster, costs)
        fetching(job, cluster)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
