"""What each start of a fit brings: agreement before it and after some of its rounds.

    python -m benchmarks.starts [--only featcal ...] [--rounds 15 30 60] [--set FIELD=VALUE ...]
                                [--job FILE] [--pool 1200] [--held 300] [--store FOLDER]

One fit for each start, with the settings of ``examples/ten-scripts.yaml`` or another job, and the
last of ``--rounds`` as its length. It learns from the first examples of each pool; agreement with
the experts is measured on the next, which no round sees. Test sets are not read. With ``--store`` a
finished start is a line of ``runs.jsonl`` there and is not run again. The last line is one JSON
object: of each start, agreement in percent by round, and the processor seconds of its directions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.kept import Kept
from tintray.jobs.config.job_file import JobSpec, parse_spec
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.events import RoundDone
from tintray.jobs.runs.fitting import coordinator_for
from tintray.jobs.runs.methods import PreparedJob, resolve_job
from tintray.storage.artifacts.store import open_store
from tintray.tasks.evaluation import mean

JOB = Path(__file__).parent.parent / "examples" / "ten-scripts.yaml"

STARTS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"init": "task_arithmetic", "scale": 0.1},
    **{n: {"init": n, "scale": None} for n in ("average", "tsv_m", "iso_c", "esm", "featcal")},
}
"""What section ``merge`` says: every start at its own scale, but task arithmetic."""


def held_back(document: dict[str, Any], pool: int, held: int) -> dict[str, Any]:
    """A job on the first examples of its pools, with the next in the place of tests."""
    for task in document["tasks"]:
        source, split = task["pool"], task["pool"].get("split", "train")
        task["test"] = source | {"split": f"{split}[{pool}:{pool + held}]"}
        task["pool"] = source | {"split": f"{split}[:{pool}]"}
    return document


def measured(spec: JobSpec, rounds: Sequence[int]) -> dict[str, float]:
    """Agreement in percent after these rounds, and the seconds before the first of them."""
    backend = InProcessBackend(1)
    spec, base = resolve_job(spec)
    job = PreparedJob.of(spec, base, backend, open_store(str(spec.store)))
    began = time.process_time()
    job.load_directions()
    found = {"seconds": round(time.process_time() - began, 1)}
    _, coordinator = coordinator_for(job)

    def look(number: int) -> None:
        if number in rounds:
            scores = coordinator.scores(lambda _: None)
            found[str(number)] = round(100 * mean([score.agreement for score in scores]), 2)

    def on_round(event: RoundDone) -> None:
        look(event.round)

    look(0)
    coordinator.fit(max(rounds), on_round)
    backend.close()
    return found


def main() -> None:
    """Print a row for each start and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--rounds", nargs="+", type=int, default=[15, 30, 60])
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--job", type=Path, default=JOB)
    parser.add_argument("--pool", type=int, default=1200)
    parser.add_argument("--held", type=int, default=300)
    parser.add_argument("--store", type=Path)
    asked = parser.parse_args()
    rows: dict[str, Any] = {}
    with TemporaryDirectory(prefix="tintray-") as scratch:
        folder = asked.store or Path(scratch)
        for start in asked.only:
            document = held_back(yaml.safe_load(asked.job.read_text()), asked.pool, asked.held)
            document |= {"store": str((folder / "store").absolute()), "cluster": {"workers": 0}}
            document["merge"] = document.get("merge", {}) | STARTS[start]
            document["fit"] = document.get("fit", {}) | {"rounds": max(asked.rounds)}
            for setting in asked.set:
                field, _, value = setting.partition("=")
                section, _, name = field.partition(".")
                document.setdefault(section, {})[name] = yaml.safe_load(value)
            spec = parse_spec(document, folder=asked.job.parent)
            key = f"{spec.digest()} {asked.rounds}"
            rows[start] = Kept(folder).once(key, start, partial(measured, spec, [0, *asked.rounds]))
            print(start, rows[start], flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
