"""A server that answers byte by byte, or breaks off in its head, holds nobody.

Time is what the server's own bytes make of it, so that a busy machine changes nothing.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.servers import S3Server
from tintray.errors import StorageError
from tintray.storage.artifacts.s3 import S3Store
from tintray.storage.artifacts.s3_client import S3Options
from tintray.storage.artifacts.urls import S3Url

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\nETag: \"x\"\r\n"
    b"Last-Modified: Wed, 21 Oct 2026 07:28:00 GMT\r\n\r\n"
)  # fmt: skip
SECONDS = 0.05  # that a byte takes, on the clock of the test
ENDLESS = 20_000  # bytes that a server sends at most: a test that waits for them has failed
Operation = Callable[[S3Store, Path], object]
OPERATIONS: dict[str, Operation] = {
    "get": lambda store, _: store.get("key"),
    "range": lambda store, _: store.get("key", 0, 5),
    "put": lambda store, _: store.put("key", b"x"),
    "list": lambda store, _: list(store.list()),
    "fetch": lambda store, folder: store.fetch("key", folder / "copy"),
}


class Trickle:
    """Answers every request with ``begin``, and then byte by byte (or not at all)."""

    def __init__(self, begin: bytes, trickles: bool) -> None:
        self._begin, self._trickles = begin, trickles
        self.sent = self.open = self.late = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.open += 1
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.recv(1 << 16)
            self.late += not self._trickles
            client.sendall(self._begin)
            while self._trickles and self.sent < ENDLESS:
                client.sendall(b"x")
                self.sent += 1
                time.sleep(0.005)
        self.open -= 1

    def clock(self) -> float:
        """Seconds, as the bytes that came make them."""
        return SECONDS * self.sent

    def break_off(self) -> None:
        """End all answers, and wait until each has ended; ``late`` counts what still comes."""
        self._trickles = False
        while self.open:
            time.sleep(0.01)


Serve = Callable[[bytes, bool], Trickle]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start such a server, to which the AWS environment leads."""
    with ExitStack() as servers:

        def start(begin: bytes, trickles: bool) -> Trickle:
            server = Trickle(begin, trickles)
            servers.callback(server.listener.close)
            for name, value in S3Server(server.url, "key", "secret").environment().items():
                monkeypatch.setenv(name, value)
            return server

        yield start


def store_of(server: Trickle, **options: float) -> S3Store:
    """A store whose operations go by the clock of a server."""
    patient = S3Options(connect_timeout=120, read_timeout=120, attempts=2, clock=server.clock)
    return S3Store(S3Url("bucket", "prefix"), replace(patient, **options))


@pytest.mark.parametrize("begin", [HEAD[:40], HEAD], ids=["head", "body"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_ends_in_its_time_however_slowly_bytes_come(
    serve: Serve, begin: bytes, name: str, tmp_path: Path
) -> None:
    server = serve(begin, True)
    store = store_of(server, deadline=0.6, slowest=1 << 30)
    with pytest.raises(StorageError, match=r"is too slow: .* was given up after \d+ s; check"):
        OPERATIONS[name](store, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert server.sent < ENDLESS
    server.break_off()
    for thread in threading.enumerate():
        if thread.name == "store":
            thread.join()
    assert server.late == 0  # what was given up is not tried again behind anybody's back


@pytest.mark.parametrize("begin", [HEAD[:17], HEAD[:20], HEAD], ids=["status", "head", "no body"])
def test_an_answer_that_broke_off_is_no_empty_listing(serve: Serve, begin: bytes) -> None:
    with pytest.raises(StorageError):
        list(store_of(serve(begin, False)).list())


def test_content_gets_the_time_that_its_size_needs(serve: Serve) -> None:
    """100 bytes take five seconds; at ten a second they are allowed ten more than the deadline."""
    server = serve(HEAD.replace(b"20000000", b"100"), True)
    assert store_of(server, attempts=1, deadline=0.3, slowest=10).get("key") == b"x" * 100
    with pytest.raises(StorageError, match="is too slow"):
        store_of(server, attempts=1, deadline=0.3, slowest=100).get("key")
