"""Measures how long the commands take that have to answer at once.

``python -m benchmarks.startup`` times whole processes of the command line, the start of Python
included, in turn, so that what else the machine does falls on all of them. The catalog has a few
jobs and merges. The last line is one JSON object: the median of each in seconds, by name.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from tintray.storage.catalog.catalog import Catalog

TIMES = 9
MOST = 0.2
"""Seconds that each should take at most, on two quiet cores."""

_MAIN = "from tintray.jobs.cli import main; raise SystemExit(main())"
_TAB = {"_TINTRAY_COMPLETE": "bash_complete", "COMP_WORDS": "tintray show t", "COMP_CWORD": "2"}
COMMANDS: Mapping[str, tuple[list[str], Mapping[str, str]]] = {
    "help": (["--help"], {}),
    "ps": (["ps"], {}),
    "list": (["list"], {}),
    "fields": (["fields"], {}),
    "fields fit": (["fields", "fit"], {}),
    "completion": ([], _TAB),
}


def main() -> None:
    """Time all of them, and print a table and the medians."""
    with TemporaryDirectory(prefix="tintray-") as name:
        url = f"sqlite:///{name}/catalog.db"
        fill(url)
        environment = {"TINTRAY_CONFIG": os.devnull, "TINTRAY_STORE": name, "TINTRAY_CATALOG": url}
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for number in range(TIMES + 1):
            for name, (words, more) in COMMANDS.items():
                took = call(words, environment | dict(more))
                if number:  # the first finds nothing in the machine's caches
                    times[name].append(took)
    for name, each in times.items():
        median, least = statistics.median(each), min(each)
        print(f"{name:<12} median {median:.3f} s, least {least:.3f} s; the most is {MOST} s")
    print(json.dumps({name: round(statistics.median(each), 3) for name, each in times.items()}))


def fill(url: str) -> None:
    """A catalog with twenty jobs, each with its merge."""
    with Catalog.open(url) as catalog:
        for number in range(20):
            job = catalog.jobs.create(f"tried-{number}", {"fit": {"rounds": 3}}, "file:///store")
            version = catalog.merges.reserve("tried", job)
            catalog.merges.record(
                "tried", version, "file:///store/merges", job, metrics={"tasks": 2}
            )


def call(words: list[str], environment: Mapping[str, str]) -> float:
    """Wall time of one call of the command line."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MAIN, *words],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=True,
    )
    took = time.perf_counter() - began
    assert done.stdout, f"{words} answered nothing: {done.stderr.decode()}"
    return took


if __name__ == "__main__":
    main()
