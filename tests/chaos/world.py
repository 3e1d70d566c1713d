"""All that jobs of a chaos run need: a cluster, a store, a database, a server, somebody to tend."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.machines import AGENTS, Cluster
from tests.chaos.places import CACHE_BYTES, Clock, Disk, Postgres, Swift, build_clock
from tests.chaos.serving import Serving
from tests.servers import BUCKET
from tests.tiny_zoo import TinyZoo, make_zoo
from tintray.storage.artifacts.store import open_store

LEASE_SECONDS = 20  # a busy machine may keep a heartbeat waiting for some of them
COMMAND = [sys.executable, "-c", "from tintray.jobs.cli import main; raise SystemExit(main())"]
STORE = f"s3://{BUCKET}/chaos"


@dataclass
class World:
    """What faults may hit, and what is told of it."""

    folder: Path
    zoo: TinyZoo
    swift: Swift
    postgres: Postgres
    cache: Disk
    clocks: Mapping[str, Clock]
    environment: Mapping[str, str]
    cluster: Cluster
    serving: Serving

    def command(self, *words: str) -> subprocess.Popen[bytes]:
        """A command of tintray, as somebody types it: by way of the gates."""
        with (self.folder / "commands.log").open("ab") as log:
            return subprocess.Popen(
                [*COMMAND, *words],
                cwd=self.zoo.folder,
                env={**os.environ, **self.environment, "TINTRAY_ADDRESS": self.cluster.address},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@contextmanager
def world(seed: int, out: Path, nodes: int = 2) -> Iterator[World]:
    """Start all, and end all; what was said is kept in ``out``."""
    folder = Path(tempfile.mkdtemp(prefix="tintray-chaos-"))
    folder.chmod(0o755)
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        ending.callback(_keep_logs, folder, out)
        library = build_clock(folder)
        clocks = {name: Clock(folder / f"clock-{name}", library) for name in ("s3", "postgres")}
        swift = Swift(folder / "swift", seed, clocks["s3"])
        ending.callback(swift.close)
        postgres = Postgres(folder / "postgres", seed + 1, clocks["postgres"])
        ending.callback(postgres.close)
        cache = Disk(folder / "cache", CACHE_BYTES)
        ending.callback(cache.close)
        environment = swift.through | {
            "TINTRAY_STORE": STORE,
            "TINTRAY_CATALOG": postgres.url(through=True),
            "TINTRAY_LEASE_SECONDS": str(LEASE_SECONDS),
            "TINTRAY_CONFIG": os.devnull,
            "XDG_CACHE_HOME": str(cache.folder),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        os.environ.update(swift.server.environment())
        os.environ.update(TINTRAY_CATALOG=postgres.url(through=False), TINTRAY_STORE=STORE)
        os.environ.update(TINTRAY_CONFIG=os.devnull)
        zoo = make_zoo(folder / "zoo")
        cluster = Cluster(nodes, environment)
        ending.callback(cluster.close)
        ending.callback(cluster.keep_logs, out)
        serving = Serving(folder, environment)
        ending.callback(serving.close)
        made = World(folder, zoo, swift, postgres, cache, clocks, environment, cluster, serving)
        yield made


@contextmanager
def tended(made: World) -> Iterator[None]:
    """Let somebody look after the queue, as a service does."""
    tending = made.command("queue", "--tend")
    try:
        yield
        assert tending.poll() is None, "`tintray queue --tend` has ended"
    finally:
        tending.send_signal(signal.SIGINT)
        try:
            tending.wait(20)
        except subprocess.TimeoutExpired:
            tending.kill()


def _keep_logs(folder: Path, out: Path) -> None:
    for log in folder.glob("*.log"):
        shutil.copy(log, out / log.name)


def left_behind(world: World) -> Iterator[str]:
    """Processes and temporary files that outlive the jobs, once the machines are off.

    Ray's own agents are none of them: see ``agents_left``.
    """
    for machine in world.cluster.machines:
        for process, name in machine.processes():
            if not name.startswith(AGENTS):
                yield f"process {process} of {machine.name}: {name[:200]}"
    for place in (STORE, f"{STORE}/grown"):
        yield from (f"{place}/{entry.key}" for entry in open_store(place).leftovers())
    for path in world.cache.folder.rglob("*.part"):
        yield str(path)


def agents_left(world: World) -> list[str]:
    """Ray's own agents that wait for a raylet or a head that is gone."""
    found = (name for _, name in world.cluster.processes())
    return [name for name in found if name.startswith(AGENTS)]
