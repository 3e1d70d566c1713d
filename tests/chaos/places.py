"""The servers of a chaos run, in its own hands: to be killed, starved and brought back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import psycopg

from tests import postgres_server, swift_server
from tests.gate import Gate
from tests.servers import BUCKET, PostgresServer, S3Server

STORE_BYTES = 96 << 20  # of the disk below the S3 server, where one of its own can be mounted
CACHE_BYTES = 24 << 20  # of that for copies on the machine of the workers


class Disk:
    """A small file system of its own, which can be filled up; a plain folder where that fails."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(folder)]
        self.own = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no byte free."""
        with suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(shutil.disk_usage(self.folder).free or 1))

    def free(self) -> None:
        """Give back what was filled."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        if self.own:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


class Clock:
    """The clock of some processes, which a preloaded library of ours (clock.c) steps."""

    def __init__(self, file: Path, library: Path | None) -> None:
        self._file, self.library = file, library
        self.set(0)

    def set(self, seconds: int) -> None:
        """Step by so many seconds from the true time."""
        self._file.write_text(f"{seconds:+d}")
        self._file.chmod(0o644)

    @property
    def environment(self) -> dict[str, str]:
        """What a process is started with whose clock this is."""
        if self.library is None:
            return {}
        return {
            "LD_PRELOAD": str(self.library),
            "CHAOS_CLOCK": str(self._file),
        }


def build_clock(folder: Path) -> Path | None:
    """The library that steps clocks; None where there is no compiler."""
    if (compiler := shutil.which("cc")) is None:
        return None
    library, source = folder / "clock.so", Path(__file__).with_name("clock.c")
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    return library if not subprocess.run(command, capture_output=True).returncode else None


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Start processes with some variables, and without PYTHONPATH."""
    before = dict(os.environ)
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Swift:
    """The S3 server on a disk of its own, behind a gate."""

    def __init__(self, folder: Path, seed: int, clock: Clock) -> None:
        self.disk, self._clock = Disk(folder, STORE_BYTES), clock
        with environment({}):
            self._ports = swift_server.configure(folder)
        self._servers: list[subprocess.Popen[bytes]] = []
        self.start()
        self.gate = Gate("127.0.0.1", self._ports["proxy"], seed)
        self.server = self._at(self._ports["proxy"])
        key = {"aws_access_key_id": self.server.key, "aws_secret_access_key": self.server.secret}
        client = boto3.client(
            "s3", endpoint_url=self.server.endpoint, region_name="us-east-1", **key
        )
        client.create_bucket(Bucket=BUCKET)

    def _at(self, port: int) -> S3Server:
        user = f"{swift_server.ACCOUNT}:{swift_server.USER}"
        return S3Server(f"http://127.0.0.1:{port}", user, swift_server.SECRET)

    @property
    def through(self) -> dict[str, str]:
        """The AWS variables that lead through the gate."""
        return self._at(self.gate.port).environment()

    def start(self) -> None:
        """Start it, with what it has kept."""
        with environment(self._clock.environment):
            self._servers = [swift_server.start(self.disk.folder, kind) for kind in self._ports]
        swift_server.wait_until_ready(self._ports, self._servers)

    def kill(self) -> None:
        """End it at once."""
        for server in self._servers:
            server.kill()
            server.wait()

    def close(self) -> None:
        """End it, and give back its disk."""
        self.gate.__exit__()
        self.kill()
        self.disk.close()


class Postgres:
    """The database on this machine, with a clock of its own, behind a gate."""

    def __init__(self, folder: Path, seed: int, clock: Clock) -> None:
        self._data, self._clock = folder / "data", clock
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        self._data.mkdir(mode=0o700)
        if not os.geteuid():
            shutil.chown(self._data, "nobody")
        self._programs = postgres_server.programs()
        postgres_server.initialise(self._programs, self._data)
        self._port = postgres_server.free_port()
        self.start()
        self.gate = Gate("127.0.0.1", self._port, seed)
        with self.connect("postgres") as admin:
            admin.execute("CREATE DATABASE chaos")

    def url(self, *, through: bool) -> str:
        """The catalog's URL: through the gate, or past it."""
        port = self.gate.port if through else self._port
        user, password = postgres_server.USER, postgres_server.PASSWORD
        return PostgresServer("127.0.0.1", port, user, password).url("chaos")

    def connect(self, name: str = "chaos") -> psycopg.Connection:
        """A connection past the gate."""
        url = self.url_of(name)
        return psycopg.connect(url, autocommit=True, connect_timeout=5)

    def url_of(self, name: str) -> str:
        """As psycopg takes it."""
        user, password = postgres_server.USER, postgres_server.PASSWORD
        return f"postgresql://{user}:{password}@127.0.0.1:{self._port}/{name}"

    def start(self) -> None:
        """Start it, with what it has kept."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        with environment(self._clock.environment):
            self._server = postgres_server.start(self._programs, self._data, self._port)
        give_up = time.monotonic() + 60
        while True:
            try:
                self.connect("postgres").close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """End it at once, with all of its processes."""
        below = children(self._server.pid)
        self._server.kill()
        self._server.wait()
        for process in below:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def close(self) -> None:
        """End it."""
        self.gate.__exit__()
        self.kill()


def children(parent: int) -> list[int]:
    """Processes that a process has started, and that are there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found
