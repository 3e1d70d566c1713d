"""A catalog as a team has it after years: what its lists take, alone and while everybody works.

    python -m benchmarks.catalog [--jobs 100000] [--merges 1000] [--queued 1000] [--clients 64]
                                [--only sqlite|postgres]

SQLite, and PostgreSQL started here on loopback, are filled with jobs, nearly all of which are over,
their changes of state, rounds and tasks, and with merges in trees of versions; 1,000 jobs wait.
``ps``, ``list`` and ``history`` are timed as queries in this process, and as whole commands, the
start of Python included; on a busy machine the processor time of a command tells more. Then the
clients, threads of eight processes, claim and end every job that waits, while the same queries are
timed on. The last line is one JSON object: medians in
seconds, and ``worst`` is the largest of a list while clients work.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import sqlalchemy as sa

from benchmarks.jobs import call
from tests.servers import postgres
from tintray.errors import StorageError
from tintray.jobs.queue.views import list_jobs
from tintray.jobs.runs.history import history
from tintray.jobs.runs.merge_list import list_merges
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Base, Cluster, Event, Job, Lease, Merge, Round, Task

CLUSTER = "http://head:8265"
PROCESSES, REPEATS, VERSIONS = 8, 7, 20
ROUNDS, WITH_ROUNDS, TASKS = 60, 2_000, 10
WAY = (
    JobState.QUEUED, JobState.PLANNING, JobState.PREPARING, JobState.FITTING,
    JobState.EVALUATING, JobState.PUBLISHING, JobState.SUCCEEDED,
)  # fmt: skip

# What lies in it


def fill(url: str, jobs: int, merges: int, queued: int) -> None:
    """Jobs, the last ``queued`` of which wait; the newest of the others have published merges."""
    now = datetime.now(UTC)
    over = jobs - queued
    made = (_job(n, n >= over, now - timedelta(minutes=jobs - n)) for n in range(jobs))
    with Catalog.open(url) as catalog, catalog.database.write() as session:
        session.execute(sa.insert(Cluster), [{"address": CLUSTER, "max_jobs": jobs}])
        while some := list(islice(made, 20_000)):
            session.execute(sa.insert(Job), some)
        for statement in _beside(_id(max(0, over - WITH_ROUNDS))):
            session.execute(statement)
        session.execute(
            sa.insert(Merge), [_merge(n, over - merges + n, now) for n in range(merges)]
        )


def _beside(newest: str) -> Iterator[sa.Insert]:
    """What lies beside each job, made by the database itself; rounds and tasks of ``newest`` on."""
    yield _of_jobs(Lease, [Job.id, sa.literal(1)], ["job_id", "token"], sa.true())
    columns = ["job_id", "at", "from_state", "to_state", "reason"]
    for before, after in pairwise((None, *WAY)):
        states = [sa.literal(state, Event.to_state.type) for state in (before, after)]
        whose = sa.true() if before is None else Job.state != JobState.QUEUED
        yield _of_jobs(
            Event, [Job.id, Job.created_at, *states, sa.literal("it is")], columns, whose
        )
    recent = Job.id >= newest
    shares = {f"task-{n}": 0.9 for n in range(TASKS)}
    metrics = {"loss": 0.5, "seconds": 1.5, "agreement": shares, "kept": shares}
    document, nothing = sa.literal(metrics, Round.metrics.type), sa.literal({}, Task.meta.type)
    for number in range(ROUNDS):
        values = [Job.id, sa.literal(number), Job.created_at, document]
        yield _of_jobs(Round, values, ["job_id", "round", "at", "metrics"],
                       recent & (Job.state != JobState.QUEUED))  # fmt: skip
    for number in range(TASKS):
        values = [Job.id, sa.literal(f"task-{number}"), sa.literal("classification"), nothing]
        yield _of_jobs(Task, values, ["job_id", "name", "kind", "meta"], recent)


def _of_jobs(
    table: type[Base], values: list[Any], columns: list[str], whose: sa.ColumnElement[bool]
) -> sa.Insert:
    return sa.insert(table).from_select(columns, sa.select(*values).where(whose))


def _id(number: int) -> str:
    return f"job-{number:08x}"


def _job(number: int, waits: bool, at: datetime) -> dict[str, Any]:
    spec = {"fit": {"rounds": ROUNDS}, "tasks": [{"name": f"task-{n}"} for n in range(TASKS)]}
    failed = number % 20 == 0
    state = JobState.QUEUED if waits else JobState.FAILED if failed else JobState.SUCCEEDED
    reason = "submitted" if waits else "a worker died" if failed else f"published as job/v{number}"
    return {
        "id": _id(number), "name": f"job-{number % 50}", "state": state, "reason": reason,
        "spec": spec, "store_url": "s3://models/tintray", "created_at": at, "updated_at": at,
        "cluster": CLUSTER, "priority": 0, "attempt": 0 if waits else 1,
    }  # fmt: skip


def _merge(number: int, job: int, now: datetime) -> dict[str, Any]:
    version = number % VERSIONS + 1
    name = f"merge-{number // VERSIONS}"
    metrics = {"tasks": TASKS, "average": 0.9, "normalised_accuracy": 0.97, "site": "head"}
    return {
        "id": number + 1, "name": name, "version": version, "job_id": _id(job), "added": [],
        "url": f"s3://models/tintray/merges/{name}/v{version}", "metrics": metrics,
        "manifest_sha256": f"{number:064x}", "created_at": now, "published_at": now,
        "parent_id": None if version == 1 else number,
    }  # fmt: skip


# What is asked of it


def questions(url: str) -> dict[str, tuple[Callable[[], object], list[str]]]:
    """Each list, as a call and as a command."""
    return {
        "ps": (lambda: list_jobs(catalog=url), ["ps"]),
        "ps --name": (lambda: list_jobs(catalog=url, name="job-7"), ["ps", "--name", "job-7"]),
        "list": (lambda: list_merges(catalog=url), ["list"]),
        "history": (lambda: history("merge-2", catalog=url), ["history", "merge-2"]),
    }


def measure(url: str) -> dict[str, float]:
    """Of each list: medians of the query and of the command, by the clock and of processor time."""
    result = {}
    for name, (ask, words) in questions(url).items():
        asked = _medians(lambda ask=ask: ask(), resource.RUSAGE_SELF)  # type: ignore[misc]
        whole = _medians(
            lambda words=words: call([*words, "--catalog", url], {"TINTRAY_CONFIG": os.devnull}),  # type: ignore[misc]
            resource.RUSAGE_CHILDREN,
        )
        print(
            f"  {name:10} query {asked[0]:7.3f} s, of which {asked[1]:.3f} s computing   command "
            f"{whole[0]:7.3f} s, of which {whole[1]:.3f} s computing",
            flush=True,
        )
        result |= {f"{name} query": asked[0], f"{name} query computing": asked[1]}
        result |= {f"{name} command": whole[0], f"{name} command computing": whole[1]}
    return result


def _medians(act: Callable[[], object], whose: int) -> tuple[float, float]:
    """Time by the clock and processor time of an act, the latter of this process or of children."""
    taken = []
    for _ in range(REPEATS):
        before = resource.getrusage(whose)
        wall = _timed(act)
        after = resource.getrusage(whose)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        taken.append((wall, busy))
    wall, busy = (statistics.median(column) for column in zip(*taken, strict=True))
    return wall, busy


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


# Everybody works


def crowd(url: str, clients: int) -> dict[str, float]:
    """Let clients end all jobs that wait; times of the lists meanwhile, and what is lost."""
    command = [sys.executable, "-m", "benchmarks.catalog", "--client", url]
    began, threads = time.perf_counter(), -(-clients // PROCESSES)
    processes = [
        subprocess.Popen([*command, str(threads)], stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    times: dict[str, list[float]] = {name: [] for name in questions(url)}
    while any(process.poll() is None for process in processes):
        for name, (ask, _) in questions(url).items():
            times[name].append(_timed(ask))
    took = time.perf_counter() - began
    answers = [json.loads(process.communicate()[0]) for process in processes]
    claimed = [job for answer in answers for job in answer["claimed"]]
    errors = [error for answer in answers for error in answer["errors"]]
    with Catalog.open(url, create=False) as catalog:
        left = len(catalog.queue.listing(0))
    twice = len(claimed) - len(set(claimed))  # by who took longer to begin than a driver may
    print(f"  {len(set(claimed))} jobs by {clients} clients in {took:.1f} s; {left} not over, "
          f"{twice} handed over twice, {len(errors)} errors")  # fmt: skip
    for error in errors[:3]:
        print(f"    {error}")
    for name, found in times.items():
        print(f"  {name:10} meanwhile: median {statistics.median(found):.3f} s, "
              f"worst {max(found):.3f} s of {len(found)}")  # fmt: skip
    medians = {f"{name} in a crowd": statistics.median(found) for name, found in times.items()}
    worst = max(max(found) for found in times.values())
    counts = {"not over": left, "twice": twice, "errors": len(errors)}
    return {**medians, "worst": worst, "seconds": took, **counts}


def client(url: str, threads: int) -> None:
    """Some clients, each a thread with a catalog of its own: they take jobs until none waits."""
    claimed: list[str] = []
    errors: list[str] = []

    def work() -> None:
        try:
            with Catalog.open(url) as catalog:
                while (claim := catalog.queue.claim(CLUSTER)) is not None:
                    claimed.append(claim.job_id)
                    _drive(catalog, claim.job_id)
        except StorageError as error:
            errors.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps({"claimed": claimed, "errors": errors}))


def _drive(catalog: Catalog, job_id: str) -> None:
    """All that a driver writes of a job, without what it computes."""
    token = catalog.leases.acquire(job_id, f"process {os.getpid()}", 60)
    for before, after in pairwise(WAY):
        catalog.jobs.transition(job_id, before, after, "it goes on", token=token)
        catalog.leases.renew(job_id, token, 60)
        catalog.queue.stop_requested(job_id)
        if after is JobState.FITTING:
            catalog.jobs.record_rounds(job_id, {0: {"loss": 0.5}}, token=token)
    catalog.leases.release(job_id, token)


def main() -> None:
    parser = argparse.ArgumentParser(description="The lists of a large catalog.")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--merges", type=int, default=1_000)
    parser.add_argument("--queued", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    parser.add_argument("--client", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        client(given.client[0], int(given.client[1]))
        return
    result: dict[str, float] = {}
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with (
        tempfile.TemporaryDirectory(prefix="tintray-") as folder,
        postgres() as server,
        server.database() as database,
    ):
        os.environ["PGPASSWORD"] = server.password  # so that no URL has it, as one is advised
        on_server = database.replace(f":{server.password}@", "@")
        urls = {"sqlite": f"sqlite:///{folder}/catalog.db", "postgres": on_server}
        for kind, url in urls.items():
            if given.only not in (None, kind):
                continue
            began = time.perf_counter()
            fill(url, given.jobs, given.merges, given.queued)
            print(f"{kind}: filled in {time.perf_counter() - began:.0f} s", flush=True)
            found = measure(url) | crowd(url, given.clients)
            result |= {f"{kind} {name}": value for name, value in found.items()}
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
