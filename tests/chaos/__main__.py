"""``python -m tests.chaos --faults 100 --seed 0``: the last line is one JSON object.

Every line before it tells of a fault and what became of the job; all lines are kept in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.faults import FAULTS, HERE, SHORT
from tests.chaos.jobs import GROWN, SUBMITTED
from tests.chaos.machines import MARK
from tests.chaos.runs import MOST, Tally, median, run
from tests.chaos.world import agents_left, left_behind, world

GRACE = 60.0  # seconds in which processes end that were told to
WEIGHTS = {"fit": 6, "data-free": 2, "add": 2, "refresh": 1, "remove": 1}


def plan(faults: int, random: Random) -> Iterator[tuple[str, list[str]]]:
    """Jobs and their faults: every kind of fault as often as any other, but for one."""
    bag: list[str] = []
    while faults > 0:
        sort = random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        chosen: list[str] = []
        for _ in range(min(faults, random.randint(1, MOST))):
            fitting = [name for name in bag if sort in SUBMITTED or name not in HERE]
            if not fitting:
                bag += random.sample(list(FAULTS), len(FAULTS))
                fitting = [name for name in bag if sort in SUBMITTED or name not in HERE]
            chosen.append(fitting[0])
            bag.remove(fitting[0])
        faults -= len(chosen)
        yield sort, chosen


def short_plan() -> list[tuple[str, Sequence[str]]]:
    """Ten faults in one fit, and no server: for `make test`."""
    return [("fit", SHORT)]


def chaos(
    jobs: Sequence[tuple[str, Sequence[str]]],
    seed: int,
    out: Path,
    *,
    compared: bool = True,
    nodes: int = 2,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Run jobs with their faults; what came of it, as the last line has it.

    ``nodes`` are those of the cluster beside its head.
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (out / f"seed-{seed}.jsonl").open("w") as log:

        def say(what: dict[str, Any]) -> None:
            line = json.dumps({"after": round(time.monotonic() - began), **what})
            print(line, flush=True)
            log.write(line + "\n")
            log.flush()

        with world(seed, out, nodes) as made:
            say({"begun": f"a cluster of {1 + nodes} machines, and its servers"})
            until = None if minutes is None else began + 60 * minutes
            tally = run(made, jobs, seed, say, compared=compared, until=until)
            served = {name: getattr(made.serving, name) for name in ("answered", "wrong", "failed")}
            made.serving.close()
            made.cluster.stop()
            over = time.monotonic() + GRACE
            while (left := list(left_behind(made))) and time.monotonic() < over:
                time.sleep(1)
            if agents := agents_left(made):
                say({"agents of Ray that were ended": agents})
        for each in left:
            say({"left": each})
        found = _told(tally, served, left, seed, time.monotonic() - began)
        log.write(json.dumps(found) + "\n")
    return found


def _told(
    tally: Tally, served: dict[str, int], left: Sequence[str], seed: int, seconds: float
) -> dict[str, Any]:
    each = tally.round_seconds
    middle, worst = median(tally.seconds), max(tally.seconds, default=0.0)
    rounds = {} if not each else {
        "round_seconds": round(each, 3),
        "rounds_lost_median": round(middle / each),
        "rounds_lost_worst": round(worst / each),
    }  # fmt: skip
    return {
        "faults": tally.faults,
        "jobs": tally.jobs,
        "lost": tally.lost,
        "wrong": tally.wrong + served["wrong"],
        "by_hand": tally.by_hand,
        "left_behind": len(left),
        "unanswered": tally.unanswered,
        "requests": served,
        "seconds_lost_median": round(middle, 1),
        "seconds_lost_worst": round(worst, 1),
        **rounds,
        "seed": seed,
        "seconds": round(seconds),
    }


def main() -> int:
    """0 if no job was lost or wrong, none needed a hand, and nothing was left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="begin no more jobs then")
    parser.add_argument("--short", action="store_true", help="the ten faults of `make test`")
    parser.add_argument("--only", metavar="FAULT", choices=FAULTS, action="append")
    parser.add_argument("--sort", choices=[*SUBMITTED, *GROWN], default="fit", help="with --only")
    parser.add_argument("--out", type=Path, default=Path("build/chaos"))
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):  # all that was started ends with it
        signal.signal(number, signal.default_int_handler)
    os.environ.pop(MARK, None)
    jobs: list[tuple[str, Sequence[str]]] = list(plan(asked.faults, Random(asked.seed)))
    if asked.only:
        jobs = [(asked.sort, asked.only)]
    elif asked.short:
        jobs = short_plan()
    found = chaos(
        *(jobs, asked.seed, asked.out),
        compared=not asked.short and not asked.only,
        nodes=1 if asked.short else 2,
        minutes=asked.minutes,
    )
    print(json.dumps(found), flush=True)
    bad = ("lost", "wrong", "by_hand", "left_behind", "unanswered")
    return int(any(found[name] for name in bad))


if __name__ == "__main__":
    sys.exit(main())
