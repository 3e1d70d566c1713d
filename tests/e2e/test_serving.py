"""`tintray serve` as its users run it: Ray Serve, a socket, clients at once, versions, a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

import tintray
from tests.answers import call
from tests.jobs.test_serving import publish
from tests.ray_head import free_ports
from tests.tiny_zoo import TinyZoo, more
from tintray.jobs import api

pytest.importorskip("fastapi")
TOKEN = "only-for-this-test"
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)


COMMAND = "import sys; from tintray.jobs.cli import main; sys.exit(main())"
ON_RAYS_PROXIES = """
import signal, sys
from ray import serve
from tintray.jobs.engine.ray_backend import join_ray
from tintray.jobs.serving.application import app

join_ray(None, 2, 100 << 20)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(app({"merge": "tiny", "poll": 0.5}), route_prefix="/")
print("tasks at http://127.0.0.1:" + sys.argv[1], file=sys.stderr, flush=True)
signal.sigwait([signal.SIGTERM])
serve.shutdown()
"""


class Server:
    """A running server, and its process."""

    def __init__(self, store: Path, log: Path, *options: str, program: str | None = None) -> None:
        self._log = log
        words = ["serve", "tiny", "--port", "0", "--poll", "0.5"] if program is None else []
        command = [sys.executable, "-c", program or COMMAND, *words, *options]
        environment = {**os.environ, "TINTRAY_SERVE_TOKEN": TOKEN, "TINTRAY_STORE": str(store)}
        environment.pop("TINTRAY_CATALOG", None)
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stderr=file, env=environment)
        self.url = self._started()

    def _started(self) -> str:
        until = time.monotonic() + 240
        while time.monotonic() < until and self.process.poll() is None:
            if found := re.search(r"tasks at (http://\S+)", self._log.read_text()):
                return found[1]
            time.sleep(0.2)
        raise AssertionError(self._log.read_text())

    def ask(self, path: str, document: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        body = None if document is None else json.dumps(document).encode()
        with urlopen(Request(self.url + path, body, headers), timeout=90) as found:
            return json.loads(found.read())

    def versions(self) -> str:
        return str(self.ask("/v1/versions")["stable"]["version"])


@pytest.fixture
def store(tiny: TinyZoo, tmp_path: Path) -> Path:
    api.run(tiny.spec(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def server(store: Path, tmp_path: Path) -> Iterator[Server]:
    made = Server(store, tmp_path / "log")
    yield made
    made.process.send_signal(signal.SIGTERM)
    assert made.process.wait(60) == 0, (tmp_path / "log").read_text()


def replicas_of(process: int) -> list[int]:
    """The processes that answer for a server: those of Ray below it that are called so."""
    table = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = [(int(pid), int(parent), args) for pid, parent, args in
            (line.split(None, 2) for line in table)]  # fmt: skip
    below, grown = {process}, True
    while grown:
        new = {pid for pid, parent, _ in rows if parent in below} - below
        below, grown = below | new, bool(new)
    return [pid for pid, _, args in rows if pid in below and "ServeReplica" in args]


@pytest.mark.slow
def test_no_request_is_lost_or_wrong_while_versions_change_and_a_replica_dies(
    server: Server, store: Path
) -> None:
    tasks = ("two", "three", "five")
    over, told = threading.Event(), 0
    answered: list[tuple[str, str, int, list[float]]] = []

    def client(seed: int) -> None:
        nonlocal told
        random = np.random.default_rng(seed)
        while not over.is_set():
            chosen = [(str(random.choice(tasks)), int(random.integers(6))) for _ in range(3)]
            inputs = [{"task": task, "array": IMAGES[n].tolist()} for task, n in chosen]
            try:
                found = server.ask("/v1/predict", {"inputs": inputs})
            except HTTPError as error:
                assert error.code in (429, 503) and error.headers["Retry-After"], error.read()
                told += 1
                time.sleep(0.5)
                continue
            for one, (task, number) in zip(found["answers"], chosen, strict=True):
                assert (one["task"], one["version"]) == (task, found["version"])
                answered.append((found["version"], task, number, one["values"]))

    with ThreadPoolExecutor(9) as threads:
        clients = [threads.submit(client, seed) for seed in range(8)]
        try:
            until = time.monotonic() + 200
            assert server.versions() == "tiny/v1"
            publish(store)
            while server.versions() != "tiny/v2" and time.monotonic() < until:
                time.sleep(0.3)
            os.kill(replicas_of(server.process.pid)[0], signal.SIGKILL)
            before = len(answered)
            while len(answered) < before + 100 and time.monotonic() < until:
                time.sleep(0.3)
        finally:
            over.set()
        for one in clients:
            one.result()
    assert {version for version, *_ in answered} == {"tiny/v1", "tiny/v2"}
    for version in ("v1", "v2"):
        merge = tintray.load(store / "merges/tiny" / version)
        expected = {task: merge.predict(task, IMAGES) for task in tasks}
        for found, task, number, values in answered:
            if found == f"tiny/{version}":
                assert values == pytest.approx(expected[task][number].values, abs=1e-5)
    print(f"{len(answered)} answers, {told} requests told to come again")


def test_what_is_served_is_watched(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINTRAY_SERVE_TOKEN", TOKEN)
    server = Server(store, tmp_path / "log", "--replicas", "0", "--observe", "30")
    place = ("--store", str(store), "--from-serve", server.url)

    def send(images: Any) -> None:
        for start in (0, 20):
            inputs = [{"array": image.tolist()} for image in images[start : start + 20]]
            server.ask("/v1/tasks/five:predict", {"inputs": inputs})

    try:
        early = call("monitor", "tiny", "--task", "five", *place).sentence
        assert "nothing was answered yet for task 'five'" in early
        send(more("five", 40, seed=1)["x_test"])
        alike = call("monitor", "tiny", "--task", "five", *place, "--json").document
        assert (alike["examples"], alike["data"], alike["drifted"]) == (30, server.url, False)
        assert {of["of"] for of in alike["differences"]} == {"confidence", "entropy", "classes"}
        send(np.zeros((40, 16, 16, 3), np.uint8))
        assert call("monitor", "tiny", "--task", "five", *place).code == 6
        publish(store)
        while server.versions() != "tiny/v2":
            time.sleep(0.3)
        other = call("monitor", "tiny/v1", "--task", "five", *place).sentence
        assert "nothing was answered yet" in other
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, (tmp_path / "log").read_text()


@pytest.mark.slow
def test_ray_serves_it_behind_its_own_proxies(store: Path, tmp_path: Path) -> None:
    """As KubeRay's RayService starts it: the same answers, the same guard, new versions."""
    server = Server(store, tmp_path / "log", str(free_ports(1)[0]), program=ON_RAYS_PROXIES)
    try:
        merge = tintray.load(str(store / "merges/tiny/v1"))
        inputs = [{"array": image.tolist()} for image in IMAGES]
        found = server.ask("/v1/tasks/five:predict", {"inputs": inputs})
        expected = merge.predict("five", list(IMAGES))
        assert [one["label"] for one in found["answers"]] == [one.label for one in expected]
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"{server.url}/v1/versions", timeout=60)
        publish(store)
        until = time.monotonic() + 60
        while server.versions() != "tiny/v2" and time.monotonic() < until:
            time.sleep(0.2)
        assert server.versions() == "tiny/v2"
    finally:
        server.process.send_signal(signal.SIGTERM)
        ended = server.process.wait(60)  # Ray Serve's own way to wait does not hear it
        assert ended in (0, -signal.SIGTERM), (tmp_path / "log").read_text()
