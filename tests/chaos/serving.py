"""A server of a merge that runs all along, and somebody who asks it and knows the answers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.chaos.places import children

_COMMAND = [sys.executable, "-c", "from tintray.jobs.cli import main; raise SystemExit(main())"]


class Serving:
    """``tintray serve`` on a Ray of its own, once it is started."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._log, self._environment = folder / "serve.log", dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._expected: Any = None
        self.answered = self.wrong = self.failed = 0

    def start(self, merge: str, body: dict[str, Any]) -> None:
        """Serve a merge, and ask it the same twice a second; returns with the first answer."""
        from tests.chaos.machines import RAY

        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_COMMAND, "serve", merge, "--port", "0"],
                env={**os.environ, **self._environment, **RAY},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        give_up = time.monotonic() + 240
        while not (found := re.search(r"tasks at (http://\S+)", self._log.read_text())):
            said = self._log.read_text()
            assert self._process.poll() is None and time.monotonic() < give_up, said
            time.sleep(0.3)
        url = found[1]
        self._expected = self._ask(url, body)
        threading.Thread(target=self._keep_asking, args=(url, body), daemon=True).start()

    @property
    def runs(self) -> bool:
        """Whether there is a server."""
        return self._process is not None

    def answers(self, seconds: float) -> bool:
        """Whether it answers, within so many seconds."""
        before, give_up = self.answered, time.monotonic() + seconds
        while self.answered == before and time.monotonic() < give_up:
            time.sleep(0.2)
        return self.answered > before

    def replicas(self) -> list[int]:
        """The processes that answer."""
        below = [] if self._process is None else [self._process.pid]
        for process in below:
            below += children(process)
        return [process for process in below if "ServeReplica" in _name(process)]

    def close(self) -> None:
        """Stop asking, and serving."""
        self._over.set()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _keep_asking(self, url: str, body: dict[str, Any]) -> None:
        while not self._over.wait(0.5):
            try:
                found = self._ask(url, body)
            except (OSError, ValueError):
                self.failed += 1
                continue
            self.answered += 1
            self.wrong += found != self._expected

    def _ask(self, url: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = Request(f"{url}/v1/predict", json.dumps(body).encode(), headers)
        with urlopen(request, timeout=60) as answer:
            return [(one["task"], one["label"]) for one in json.load(answer)["answers"]]


def _name(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    return ""
