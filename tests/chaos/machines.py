"""Machines of a Ray cluster on this one: a head and nodes, whose processes have a mark."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

from tests.ray_head import free_ports
from tintray.errors import TintrayError
from tintray.jobs.queue.ray_jobs import RayJobs

MARK = "TINTRAY_CHAOS_MACHINE"
RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
}
"""A lost node is noticed after some seconds instead of a minute."""

READY_SECONDS = 120
WORKERS, SHARDS, RAYLET = "workers", "shards", "raylet/raylet"
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""What Ray runs beside a raylet, and what may outlive one that was killed."""


_SOCKETS = {"raylet", "plasma_store"}


class Machine:
    """A machine that runs ``ray start`` with some options.

    What it runs is known by its mark or by its session: who gives itself another name writes that
    over its environment, and who begins a session has the mark.
    """

    def __init__(self, name: str, options: list[str], environment: Mapping[str, str]) -> None:
        self.name, self._options, self._environment = name, options, dict(environment)
        self.mark = f"{name}-{os.getpid()}"
        self._started: subprocess.Popen[bytes] | None = None
        self._sessions: set[int] = set()  # all that may have processes yet

    def start(self, log: Path) -> None:
        """Start it; see ``Cluster.wait``."""
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
            "--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0",
            f"--object-store-memory={80 << 20}", "--disable-usage-stats", *self._options,
        ]  # fmt: skip
        with log.open("ab") as file:
            self._started = subprocess.Popen(
                command,
                env={**os.environ, **self._environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._sessions.add(self._started.pid)

    def processes(self) -> Iterator[tuple[int, str]]:
        """Those that run on it, with what they are called."""
        wanted = f"{MARK}={self.mark}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                marked = wanted in (path / "environ").read_bytes().split(b"\0")
                if state != "Z" and (marked or int(session) in self._sessions):
                    words = (path / "cmdline").read_bytes().split(b"\0")
                    yield int(path.name), b" ".join(words).decode(errors="replace").strip()

    def stop(self) -> None:
        """Tell what was started here to end; what it leaves behind stays."""
        if self._started is not None:
            self._started.terminate()
            try:
                self._started.wait(30)
            except subprocess.TimeoutExpired:
                self._started.kill()

    def kill(self) -> None:
        """Take its power away."""
        for _ in range(3):  # until nothing new is started by what was there
            found = list(self.processes())
            for process, _ in found:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if not found:
                self._sessions.clear()  # its numbers may be given to others now
                break
            time.sleep(0.1)
        if self._started is not None:
            self._started.kill()
            self._started.wait()


class Cluster:
    """A head with its dashboard, and nodes; CPUs are those of each."""

    def __init__(self, nodes: int, environment: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # socket names allow no longer one
        dashboard, gcs, agent, metrics = free_ports(4)
        self.address, self.gcs = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
        environment = {**environment, **RAY, "TINTRAY_ADDRESS": self.address}
        head = [
            "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--temp-dir={self.folder}",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}", "--num-cpus=1",
        ]  # fmt: skip
        self.head = Machine("head", head, environment)
        self.nodes = []
        for number in range(nodes):
            agent, metrics = free_ports(2)
            options = [
                f"--address={self.gcs}", f"--dashboard-agent-listen-port={agent}",
                f"--metrics-export-port={metrics}", "--num-cpus=1",
            ]  # fmt: skip
            self.nodes.append(Machine(f"node{number + 1}", options, environment))
        self.start()

    @property
    def machines(self) -> list[Machine]:
        """The head and the nodes."""
        return [self.head, *self.nodes]

    def start(self) -> None:
        """Start all machines: the head first, whose dashboard answers when this returns."""
        self.head.start(self.folder / "head.log")
        give_up = time.monotonic() + READY_SECONDS
        jobs = RayJobs(self.address, patience=30)
        while True:
            try:
                # The dashboard answers before it can take a job: then it says so with a 500.
                jobs.submit("true", f"probe-{time.monotonic_ns()}", {})
                break
            except TintrayError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.2)
        for machine in self.nodes:
            self._start_node(machine)

    def _start_node(self, node: Machine) -> None:
        """Start a node, and wait for its sockets.

        Ray names them by the first number that is free: of two nodes that start at once on one
        machine both may take the same, and die of it.
        """
        before = self._sockets()
        node.start(self.folder / f"{node.name}.log")
        give_up = time.monotonic() + READY_SECONDS
        while time.monotonic() < give_up:
            if {path.name.split(".")[0] for path in self._sockets() - before} == _SOCKETS:
                break
            time.sleep(0.1)

    def _sockets(self) -> set[Path]:
        return set((self.folder / "session_latest" / "sockets").glob("*"))

    def restart(self, machine: Machine) -> None:
        """Bring a machine back; without its head a cluster is none."""
        if machine is self.head:
            for other in self.machines:
                other.kill()
            self.start()
        else:
            machine.kill()
            self._start_node(machine)

    def mend(self) -> list[str]:
        """Bring nodes back that their head gave up, on a machine that is too busy; their names."""
        gone = [node for node in self.nodes if not any(RAYLET in n for _, n in node.processes())]
        for node in gone:
            self.restart(node)
        return [node.name for node in gone]

    def processes(self) -> Iterator[tuple[int, str]]:
        """Those of all machines."""
        for machine in self.machines:
            yield from machine.processes()

    def find(self, part: str) -> list[int]:
        """Processes whose name has this part, or that are WORKERS or SHARDS."""
        if part in (WORKERS, SHARDS):
            return self._members(part)
        return [process for process, name in self.processes() if part in name]

    def _members(self, kind: str) -> list[int]:
        """Ray's actors that host members of jobs: workers have CPUs to themselves, shards none."""
        try:
            with urlopen(f"{self.address}/api/v0/actors?detail=1&limit=1000", timeout=10) as answer:
                actors = json.load(answer)["data"]["result"]["result"]
        except (OSError, ValueError, LookupError, TypeError):
            return []  # the head is away
        return [
            actor["pid"]
            for actor in actors
            if (actor["class_name"], actor["state"]) == ("_Host", "ALIVE")
            and bool((actor["required_resources"] or {}).get("CPU")) == (kind == WORKERS)
        ]

    def stop(self) -> None:
        """Turn all machines off, as `ray stop` does: jobs are over by then.

        The head goes last: Ray's agents on a node would wait for one that is gone.
        """
        for machine in reversed(self.machines):
            machine.stop()

    def keep_logs(self, folder: Path) -> None:
        """Keep what drivers have said."""
        for log in self.folder.glob("session_*/logs/job-driver-*.log"):
            shutil.copy(log, folder / log.name)

    def close(self) -> None:
        """End all."""
        for machine in self.machines:
            machine.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
