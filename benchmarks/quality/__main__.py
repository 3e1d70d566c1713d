"""What a merge keeps of its experts, on every zoo, beside rivals that had the same chances.

    python -m benchmarks.quality [--only ROW ...] [--seeds 3] [--rounds N] [--zoos DIR]
                                 [--store DIR]

A row is a zoo (``text``: the default recipe with nothing set), a zoo with a row of it
(``hard.small``, ``mild.head``), or a table:

    published     what each ingredient brings to the published loop, on the hard zoo
    compressed    compressed experts, on the hard zoo, at 0.5 % of the bytes and at their own size
    untrained     all merging methods that read no data, on the hard zoo
    speed         processor time to 90, 95 and 98 % of the experts, ours and the published loop
    floor         the worst difference to the best data-free method, over the zoos asked for
    placement     a fit at every tint site, and the one that ``auto`` finds
    tuning        the search for the published loop's rates; takes hours

Without --only: every zoo, and all tables but the last two. Settings were chosen by agreement on
pools; test sets serve for these tables alone. Zoos that are not there are named with the command
that makes them. Every finished job is a line of ``runs.jsonl`` in --store, under the hash of the
code that decides results, of models and of data; it is not run again while these stay, so that
what was stopped goes on, and several calls can run beside each other. A job runs in this process
on one core; seconds are processor time of the fit.

The last line is one JSON object: shares of 1, ``floor`` in points; null is what was not asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.quality.contest import TABLES, Contest
from benchmarks.quality.measure import Bench
from benchmarks.quality.rows import ROWS, row
from benchmarks.quality.tables import figures, kept
from benchmarks.quality.zoos import ZOOS
from tintray.errors import TintrayError

DEFAULT = (*ZOOS, *(name for name in TABLES if name not in ("placement", "tuning")))
SINGLE = ("text", "dense", "lora", "many", "digits")
"""Zoos of which the last line has the normalised accuracy of the small row alone."""


def wanted(only: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Rows by zoo, and tables; ValueError for a name that is neither."""
    rows: dict[str, list[str]] = {}
    tables = []
    for name in only:
        zoo, dot, chosen = name.partition(".")
        if name in TABLES:
            tables.append(name)
        elif zoo in ZOOS and (not dot or row(chosen)):
            own = list(ROWS) if zoo in ("hard", "halves") else ["small"]
            rows.setdefault(zoo, []).extend([chosen] if dot else own)
        else:
            raise ValueError(f"{name}: expected one of {', '.join((*ZOOS, *TABLES))}, or ZOO.ROW")
    return rows, tables


def last_line(contest: Contest, floor: float | None) -> dict[str, Any]:
    """The figures of the default recipe; None is what was not measured."""

    def found(zoo: str, row: str) -> Any:
        runs = contest.measured.get((zoo, row))
        return figures(runs) if runs else None

    result: dict[str, Any] = {
        "hard": {row: found("hard", row) for row in ROWS},
        "mild": {"small": found("mild", "small")},
    }
    for zoo in SINGLE:
        runs = contest.measured.get((zoo, "small"))
        result[zoo] = round(kept(runs), 4) if runs else None
    return result | {"floor": None if floor is None else round(floor, 2)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print markdown tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=DEFAULT, metavar="ROW")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="of every fit; by default those of its row")
    parser.add_argument("--zoos", type=Path, default=Path("zoo"), help="the folder of the zoos")
    parser.add_argument("--store", type=Path, help="keep everything here, and go on from there")
    given = parser.parse_args(arguments)
    try:
        rows, tables = wanted(given.only)
    except ValueError as error:
        parser.error(f"--only {error}")
    with TemporaryDirectory(prefix="tintray-quality-") as scratch:
        store = (given.store or Path(scratch)).resolve()
        contest = Contest(Bench(given.zoos.resolve(), store, given.rounds), given.seeds)
        try:
            compared = list(rows) or list(ZOOS)
            for zoo in compared if "floor" in tables else rows:
                ZOOS[zoo].file(given.zoos)  # what is missing is told before anything is run
            for zoo, names in rows.items():
                contest.zoo(zoo, names)
            for name in tables:
                if name != "floor":
                    TABLES[name](contest)
            floor = contest.floor(compared) if "floor" in tables else None
        except TintrayError as error:
            print(error, file=sys.stderr)
            return 2
        print(json.dumps(last_line(contest, floor)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
