"""Measures what people wait for: a submission, a list of ten thousand jobs, the help.

``python -m benchmarks.jobs`` starts a Ray head on this machine and times whole processes of the
command line, the start of Python included. The drivers of the jobs that it submits end at once, and
the next submission waits until the cluster is idle again: what is timed is a submission, not the
start of the one before it. The last line is one JSON object, in seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa
from ray.job_submission import JobSubmissionClient

from tests.ray_head import ray_head
from tests.tiny_zoo import make_zoo
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Event, Job, Lease

TIMES = 7
JOBS = 10_000
_MAIN = "from tintray.jobs.cli import main; raise SystemExit(main())"


def main() -> None:
    with TemporaryDirectory(prefix="tintray-") as name:
        folder = Path(name)
        job = make_zoo(folder / "zoo").job_file(folder / "store")
        ended = shutil.which("true")
        assert ended is not None
        environment = {"TINTRAY_CONFIG": os.devnull, "TINTRAY_PYTHON": ended}
        with ray_head(cpus=2) as head:
            environment |= {"TINTRAY_ADDRESS": head.address, "TINTRAY_STORE": str(folder / "store")}
            first = call(["submit", str(job)], environment)  # knows the cluster
            call(["queue", "--max-jobs", "1000"], environment)  # so that each is handed over
            submit = timed(["submit", str(job)], environment, lambda: until_idle(head.address))
        url = f"sqlite:///{folder}/many/catalog.db"
        fill(url)
        ps = timed(["ps", "--catalog", url], environment)
    help_ = timed(["--help"], environment)
    print(f"the first submission, into a catalog that is made by it: {first:.2f} s")
    for what, times in (("submit", submit), (f"ps of {JOBS:,} jobs", ps), ("--help", help_)):
        print(f"{what:<20} median {statistics.median(times):.2f} s, worst {max(times):.2f} s")
    result = {"submit_s": submit, "ps_10k_s": ps, "help_s": help_}
    print(json.dumps({name: round(statistics.median(t), 3) for name, t in result.items()}))


def until_idle(address: str) -> None:
    """Wait until nothing that was handed to the cluster starts or runs."""
    cluster = JobSubmissionClient(address)
    while not all(job.status.is_terminal() for job in cluster.list_jobs()):
        time.sleep(0.2)
    time.sleep(1)  # a driver's processes end a little after its state says so


def timed(
    args: list[str], environment: Mapping[str, str], ready: Callable[[], None] | None = None
) -> list[float]:
    """Wall time of each of several calls; ``ready`` waits for each one's turn."""
    times = []
    for _ in range(TIMES):
        if ready is not None:
            ready()
        times.append(call(args, environment))
    return times


def call(args: list[str], environment: Mapping[str, str]) -> float:
    """Wall time of one call of the command line."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", _MAIN, *args],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def fill(url: str) -> None:
    """A catalog with ten thousand jobs, as a team has after a year: most are over."""
    now = datetime.now(UTC)
    jobs, leases, events = [], [], []
    for number in range(JOBS):
        job_id = f"job-{number:08x}"
        at = now - timedelta(minutes=JOBS - number)
        state = JobState.QUEUED if number >= JOBS - 10 else JobState.SUCCEEDED
        spec = {"fit": {"rounds": 300}, "tasks": [{"name": f"task-{n}"} for n in range(20)]}
        common = {"reason": "published as job/v1", "created_at": at, "updated_at": at}
        jobs.append(
            {"id": job_id, "name": "job", "state": state, "spec": spec, "cluster": "http://h:1",
             "store_url": "s3://models/tintray", "priority": 0, "attempt": 1, **common}
        )  # fmt: skip
        leases.append({"job_id": job_id, "token": 1})
        events += [
            {"job_id": job_id, "at": at, "to_state": to, "reason": "because"} for to in JobState
        ]
    with Catalog.open(url) as catalog, catalog.database.write() as session:
        for table, rows in ((Job, jobs), (Lease, leases), (Event, events)):
            session.execute(sa.insert(table), rows)


if __name__ == "__main__":
    main()
