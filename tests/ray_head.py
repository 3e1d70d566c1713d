"""A real Ray head with its dashboard, for tests: started, killed and ended by its process group.

Never ``ray stop``: that ends every Ray of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

READY_SECONDS = 60
TRIES = 3
MARK = "TINTRAY_TEST_HEAD"  # a variable by which a head's processes are known


class RayHead:
    """A head that runs; ``address`` is that of its dashboard, ``cluster`` what drivers join."""

    def __init__(self, cpus: int, environment: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # socket names allow no longer one
        ports = free_ports(4)
        self.address = f"http://127.0.0.1:{ports[0]}"
        self.cluster = f"127.0.0.1:{ports[1]}"
        self.metrics = f"http://127.0.0.1:{ports[3]}/metrics"
        self._log = (self.folder / "head.log").open("wb")
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
            "--node-ip-address=127.0.0.1", f"--port={ports[1]}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[0]}",
            # Fixed ports by default: a second Ray on the machine could then take no job.
            f"--dashboard-agent-listen-port={ports[2]}", f"--metrics-export-port={ports[3]}",
            "--min-worker-port=0", "--max-worker-port=0",
            f"--num-cpus={cpus}", f"--object-store-memory={100 << 20}",
            f"--temp-dir={self.folder}", "--disable-usage-stats",
        ]  # fmt: skip
        root = str(Path(__file__).parents[1])
        quiet = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": root, MARK: str(self.folder)}
        quiet["RAY_worker_niceness"] = "0"  # 15 by default: a busy machine would starve them
        self._head = subprocess.Popen(
            command,
            env={**os.environ, **quiet, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the head and all that runs on it at once, as a power cut does."""
        with suppress(ProcessLookupError):
            os.killpg(self._head.pid, signal.SIGKILL)
        self._head.wait()
        for process in self._left():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> list[int]:
        """Processes of this head in groups of their own: drivers of jobs."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self.folder}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def _wait(self) -> None:
        opener = build_opener(ProxyHandler({}))
        body = json.dumps({"entrypoint": "true"}).encode()
        request = Request(
            f"{self.address}/api/jobs/", body, {"Content-Type": "application/json"}, method="POST"
        )
        give_up = time.monotonic() + READY_SECONDS
        while True:
            try:
                # The dashboard answers before it can take a job: then it says so with a 500.
                with opener.open(request, timeout=30) as answer:
                    json.load(answer)
                    return
            except (URLError, OSError, ValueError):
                if time.monotonic() > give_up or self._head.poll() is not None:
                    said = (self.folder / "head.log").read_text(errors="replace")
                    raise RuntimeError(f"the Ray head did not start: {said[-2000:]}") from None
                time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start_head(cpus: int, environment: Mapping[str, str]) -> RayHead:
    """A head that takes jobs; another try where somebody else took one of its ports first."""
    for left in reversed(range(TRIES)):
        try:
            return RayHead(cpus, environment)
        except RuntimeError:
            if not left:
                raise
    raise AssertionError("one try at least")


@contextmanager
def ray_head(cpus: int = 2, **environment: str) -> Iterator[RayHead]:
    """A head for the length of a block."""
    head = start_head(cpus, environment)
    try:
        yield head
    finally:
        head.kill()
