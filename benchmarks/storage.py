"""The artifact store beside plain boto3 on the same real server; the catalog under many clients.

    python -m benchmarks.storage [--repeats 5] [--megabytes 350]

OpenStack Swift and PostgreSQL are started here on loopback (`pip install 'tintray[test]'`).

* ``upload_over_boto3``    putting a backbone as a blob (two hashes of it, a conditional look, parts
                           in parallel) over ``boto3``'s own ``upload_file``; medians, interleaved
* ``download_over_boto3``  fetching it, its hash checked, over ``download_file``; likewise
* ``tint_bytes_share``     bytes on the wire, headers and all, for loading one tint layer of a merge
                           with that backbone and ten tints, over the bytes of the merge
* ``lost_updates``         of 1,000 jobs that 32 clients create in PostgreSQL and race through all
                           states, and 200 by 8 in SQLite: changes that were not made, made twice,
                           or left no event; errors that reached a client count too

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.servers import BUCKET, S3Server, postgres, swift
from tintray.errors import StateConflictError
from tintray.storage.artifacts.blobs import blob_key, fetch_blob, hash_file, put_blob
from tintray.storage.artifacts.publish import parse_merge_url, publish_merge
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState

MIB = 1 << 20
TINTS = 10
WAY = (
    JobState.QUEUED, JobState.PLANNING, JobState.PREPARING, JobState.FITTING,
    JobState.EVALUATING, JobState.PUBLISHING, JobState.SUCCEEDED,
)  # fmt: skip
THREADS_PER_PROCESS = 4


# Transfers


def transfers(server: S3Server, size: int, repeats: int, folder: Path) -> dict[str, float]:
    """Interleaved medians of upload and download, tintray's over plain boto3's."""
    import boto3

    client = boto3.client("s3")
    store = open_store(f"s3://{BUCKET}/benchmark")
    store.check_writable()  # connected, as boto3's client is after its first request
    client.list_objects_v2(Bucket=BUCKET)
    seconds: dict[str, list[float]] = {}
    peak = 0.0
    for number in range(repeats):
        file = write_random(folder / "backbone", size, seed=number)
        ref = hash_file(file)
        turns: list[tuple[str, Callable[[], object]]] = [
            ("upload", lambda file=file: put_blob(store, file)),  # type: ignore[misc]
            ("boto3 upload", lambda file=file: client.upload_file(file, BUCKET, "plain")),  # type: ignore[misc]
        ]
        downloads: list[tuple[str, Callable[[], object]]] = [
            ("download", lambda ref=ref: fetch_blob(store, ref, folder / "cache")),  # type: ignore[misc]
            (
                "boto3 download",
                partial(client.download_file, BUCKET, "plain", str(folder / "plain")),
            ),
        ]
        before = resident()
        for pair in (turns, downloads):
            for name, action in pair if number % 2 == 0 else reversed(pair):
                os.sync()  # what one left to write is not the other's to wait for
                began = time.perf_counter()
                action()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
                if not name.startswith("boto3"):
                    peak = max(peak, resident() - before)
        (folder / "cache" / blob_key(ref.sha256)).unlink()
        store.delete(blob_key(ref.sha256))
        client.delete_object(Bucket=BUCKET, Key="plain")
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, taken in medians.items():
        print(f"{name:15} {size / MIB / taken:6.1f} MiB/s   {taken:6.2f} s")
    print(f"memory          {peak / MIB:6.1f} MiB more at most, for {size / MIB:.0f} MiB")
    return {
        "upload_over_boto3": medians["upload"] / medians["boto3 upload"],
        "download_over_boto3": medians["download"] / medians["boto3 download"],
    }


def write_random(path: Path, size: int, seed: int) -> Path:
    """A file that nothing can compress or know."""
    source = random.Random(seed)
    with path.open("wb") as file:
        for start in range(0, size, 8 * MIB):
            file.write(source.randbytes(min(8 * MIB, size - start)))
    return path


def resident() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# One tint


class CountingRelay:
    """Passes TCP connections on to a server, and counts every byte in both directions.

    What a client sends is held for ``delay`` seconds, as if the server were further away.
    """

    def __init__(self, endpoint: str, delay: float = 0.0) -> None:
        self._delay = delay
        host, _, port = endpoint.rpartition("://")[2].partition(":")
        self._target = (host, int(port))
        self._lock = threading.Lock()
        self.count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                for ends in ((client, server, self._delay), (server, client, 0.0)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, delay: float) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(delay)
                with self._lock:
                    self.count += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()


def one_tint(server: S3Server, size: int, folder: Path) -> float:
    """Bytes on the wire for loading one tint, over the bytes of its merge."""
    import numpy as np
    from safetensors.numpy import save

    from tintray.checkpoints.tensors import read_tensors
    from tintray.published.files import BACKBONE, tint_file
    from tintray.storage.artifacts.publish import listed_files, read_manifest

    tint = {"classifier.weight": np.random.default_rng(0).standard_normal(size // 800, np.float32)}
    tasks = [f"task{number}" for number in range(TINTS)]
    files: dict[str, bytes | Path] = {BACKBONE: write_random(folder / "backbone", size, seed=99)}
    for number, task in enumerate(tasks):
        files[tint_file(task)] = save({name: array + number for name, array in tint.items()})
    store = open_store(f"s3://{BUCKET}/tints")
    url = publish_merge(store, "ten", files, {}, version=1)
    total = sum(entry.size for entry in store.list())
    relay = CountingRelay(server.endpoint)
    with environment({"AWS_ENDPOINT_URL": relay.endpoint, "XDG_CACHE_HOME": str(folder / "own")}):
        away, ref = parse_merge_url(url)
        manifest = read_manifest(away, ref)
        loaded = read_tensors(
            fetch_blob(away, listed_files(manifest, url)[tint_file("task3")], folder / "own")
        )
    assert np.allclose(loaded["classifier.weight"].numpy(), tint["classifier.weight"] + 3)
    relay.close()
    print(f"one tint        {relay.count:,} bytes on the wire of a merge of {total:,}")
    return relay.count / total


@contextmanager
def environment(changed: dict[str, str]) -> Iterator[None]:
    """Other environment variables for a while."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


# The catalog


def crowd(url: str, jobs: int, clients: int) -> int:
    """Let clients create jobs and race them through all states; returns the updates lost.

    Every job is moved by the client that created it and by its neighbour, both trying each change.
    """
    with Catalog.open(url):
        pass
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.storage", "--client"]
    processes = []
    for first in range(0, clients, THREADS_PER_PROCESS):
        numbers = range(first, min(first + THREADS_PER_PROCESS, clients))
        order = {"url": url, "clients": clients, "jobs": jobs, "numbers": list(numbers)}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        processes.append(process)
    answers = [json.loads(process.communicate(timeout=900)[0]) for process in processes]
    won = sum(answer["won"] for answer in answers)
    errors = [error for answer in answers for error in answer["errors"]]
    lost = abs(jobs * (len(WAY) - 1) - won) + len(errors) + _missing_events(url, jobs)
    took = time.perf_counter() - began
    kind = url.partition(":")[0].partition("+")[0]
    print(f"{kind:15} {jobs} jobs by {clients} clients in {took:.1f} s, {lost} updates lost")
    for error in errors[:3]:
        print(f"  {error}")
    return lost


def _missing_events(url: str, jobs: int) -> int:
    """Jobs that are missing or not done, and events that are missing, doubled or out of order."""
    lost = 0
    with Catalog.open(url, create=False) as catalog:
        found = catalog.jobs.all()
        lost += abs(jobs - len(found))
        for job in found:
            events = catalog.jobs.events(job.id)
            lost += job.state is not WAY[-1]
            lost += [event.to_state for event in events] != list(WAY)
            lost += [event.from_state for event in events] != [None, *WAY[:-1]]
    return lost


def client_process() -> None:
    """Some clients, each a thread with a catalog of its own; told by one line what to do."""
    order = json.loads(sys.stdin.readline())
    results: list[tuple[int, list[str]]] = []
    threads = [
        threading.Thread(target=lambda n=number: results.append(_client(order, n)))  # type: ignore[misc]
        for number in order["numbers"]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [error for _, found in results for error in found]
    print(json.dumps({"won": sum(won for won, _ in results), "errors": errors}))


def _client(order: dict[str, Any], number: int) -> tuple[int, list[str]]:
    """Create one's share of the jobs, then move them and the neighbour's; changes won, errors."""
    clients = order["clients"]
    share = range(number, order["jobs"], clients)
    won, errors = 0, []
    try:
        with Catalog.open(order["url"]) as catalog:
            mine = [catalog.jobs.create(f"of-{number}", {}, "file:///store") for _ in share]
            neighbour = f"of-{(number + 1) % clients}"
            theirs: list[str] = []
            count = len(range((number + 1) % clients, order["jobs"], clients))
            while len(theirs) < count:
                theirs = [job.id for job in catalog.jobs.all() if job.name == neighbour]
                time.sleep(0.05)
            for job in (job for pair in zip_longest_flat(mine, theirs) for job in pair):
                for before, after in pairwise(WAY):
                    with suppress(StateConflictError):
                        catalog.jobs.transition(job, before, after, f"client {number}")
                        won += 1
    except Exception as error:  # noqa: BLE001 - whatever reaches a client is a failure of the catalog
        errors.append(f"{type(error).__name__}: {error}")
    return won, errors


def zip_longest_flat(one: list[str], other: list[str]) -> Iterator[list[str]]:
    """Pairs of two lists; a longer one goes on alone."""
    for index in range(max(len(one), len(other))):
        yield [*one[index : index + 1], *other[index : index + 1]]


def main() -> None:
    parser = argparse.ArgumentParser(description="The store against boto3; the catalog in a crowd.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=350)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        client_process()
        return
    size = arguments.megabytes * MIB
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="tintray-benchmark-") as place:
        folder = Path(place)
        with swift() as server, environment(server.environment()):
            result = transfers(server, size, arguments.repeats, folder)
            result["tint_bytes_share"] = one_tint(server, size, folder)
        with postgres() as database, database.database() as url:
            lost = crowd(url, jobs=1000, clients=32)
        lost += crowd(f"sqlite:///{folder}/catalog.db", jobs=200, clients=8)
    rounded = {name: round(value, 4) for name, value in result.items()}
    print(json.dumps(rounded | {"lost_updates": lost}))


if __name__ == "__main__":
    main()
