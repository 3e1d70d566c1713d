"""Ray's Jobs API as far as a queue asks for it, in this process."""

from __future__ import annotations

import json
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any

VERSIONS = {"rayVersion": version("ray"), "pythonVersion": platform.python_version()}


class Answers(BaseHTTPRequestHandler):
    """Answers a path with a code and a JSON object, or sends whoever asks elsewhere."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.get()

    def do_POST(self) -> None:
        self.post()

    def get(self) -> None:
        self.answer(404, {})

    def post(self) -> None:
        self.get()

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return found

    def answer(self, code: int, body: dict[str, Any], **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Let a server answer during the block; its address."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def fake_head(
    token: str | None = None, **metadata: str
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A head that takes every job; its address, and what was submitted."""
    submitted: list[dict[str, Any]] = []

    class Head(Answers):
        def get(self) -> None:
            if token is not None and self.headers["Authorization"] != f"Bearer {token}":
                return self.answer(401, {})
            if "metadata" in self.path:
                return self.answer(200, {"data": VERSIONS | metadata})
            return self.answer(404, {})

        def post(self) -> None:
            body = self.body()
            submitted.append(body | {"authorization": self.headers["Authorization"]})
            self.answer(200, {"submission_id": body.get("submission_id")})

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Head)) as address:
        yield address, submitted


@contextmanager
def redirecting(target: str) -> Iterator[tuple[str, list[str | None]]]:
    """A head that sends whoever asks it to another address; with the tokens it was given."""
    seen: list[str | None] = []

    class Redirects(Answers):
        def get(self) -> None:
            seen.append(self.headers["Authorization"])
            self.answer(307, {}, Location=f"{target}{self.path}")

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Redirects)) as address:
        yield address, seen
