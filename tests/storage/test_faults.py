"""A server that fails, stalls or breaks off in a fifth of its requests: nothing is half done."""

from __future__ import annotations

import http.client
import os
import random
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Published
from tests.gate import Gate
from tests.growing import hashes
from tests.tiny_zoo import TinyZoo
from tintray.errors import AwayError, RefusedError, StorageError
from tintray.jobs import api
from tintray.storage.artifacts.blobs import fetch_blob, get_blob, put_blob
from tintray.storage.artifacts.publish import (
    list_merges,
    listed_files,
    publish_merge,
    read_manifest,
)
from tintray.storage.artifacts.s3 import S3Store
from tintray.storage.artifacts.s3_client import S3Options
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.urls import S3Url

MIB = 1 << 20
OPTIONS = S3Options(connect_timeout=2, read_timeout=1, attempts=6, part_size=5 * MIB, threads=4)


class FaultyProxy(ThreadingHTTPServer):
    """Forwards requests to a server; a fifth of them meet a fault, in a fixed order."""

    daemon_threads = True

    def __init__(self, target: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.faults: list[str] = []
        self.most_tries = 0
        self._random = random.Random(7)
        self._lock = threading.Lock()
        self.released = threading.Event()

    def next_fault(self) -> str | None:
        with self._lock:
            if self._random.random() >= 0.2:
                return None
            fault = self._random.choice(["error", "stall", "lost answer", "cut answer"])
            self.faults.append(fault)
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _serve(self) -> None:
        tried = re.search(r"attempt=(\d+)", self.headers.get("amz-sdk-request", ""))
        assert tried is not None
        self.server.most_tries = max(self.server.most_tries, int(tried[1]))
        fault = self.server.next_fault()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "stall":
            self.server.released.wait(5)
            self.close_connection = True
        elif fault == "error":
            self._answer(503, {}, b"")
        else:
            self._forward(body, fault)

    def _forward(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(self.server.target, timeout=30)
        upstream.request(self.command, self.path, body=body, headers=dict(self.headers.items()))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault == "lost answer":  # the server has done it, the client cannot know
            self.close_connection = True
            return
        kept = {"content-length", "transfer-encoding", "connection"}
        headers = {key: value for key, value in answer.getheaders() if key.lower() not in kept}
        size = answer.getheader("Content-Length") or str(len(data))
        if fault == "cut answer":
            data = data[: len(data) // 2]
            self.close_connection = True
        self._answer(answer.status, headers | {"Content-Length": size}, data)

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 (http.server's names)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client gave up first, as it should


@pytest.fixture
def proxy(s3_url: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_every_operation_succeeds_or_fails_cleanly(
    proxy: FaultyProxy, s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sound = open_store(s3_url)
    sound.check_writable()  # it is connected to the server itself
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    store = S3Store(S3Url(bucket, prefix), OPTIONS)
    large = tmp_path / "large"
    large.write_bytes(random.Random(1).randbytes(12 * MIB))

    def use(number: int) -> bool:
        """Whether everything succeeded; what failed has failed cleanly."""
        content = f"tint {number}".encode()
        try:
            files: dict[str, bytes | Path] = {"tint": content, "backbone": large}
            publish_merge(store, "faulty", files, {"number": number}, version=number + 1)
            ref = put_blob(store, content)
            assert get_blob(store, ref) == content
            cache = tmp_path / str(number)
            assert fetch_blob(store, put_blob(store, large), cache).stat().st_size == 12 * MIB
        except StorageError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:  # who waits for a stalled request holds up nobody else
        done = sum(pool.map(use, range(8)))
    assert len(proxy.faults) >= 10
    assert 1 < proxy.most_tries <= OPTIONS.attempts
    assert done >= 6, f"{8 - done} of 8 gave up although every request is tried six times"
    published = [read_manifest(sound, ref) for ref in list_merges(sound)]
    assert len({manifest["number"] for manifest in published}) == len(published) >= done
    for manifest in published:
        found = listed_files(manifest, "it")
        tint = fetch_blob(sound, found["tint"], tmp_path / "check").read_bytes()
        assert tint == f"tint {manifest['number']}".encode()
        fetch_blob(sound, found["backbone"], tmp_path / "check")


@pytest.fixture
def altering(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """What can alter requests to the store, and nothing that it answers."""
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert server.hostname is not None and server.port is not None
    with Gate(server.hostname, server.port, seed=3) as gate:
        gate.answers = False
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gate.port}")
        yield gate


@pytest.mark.slow
def test_a_job_whose_requests_are_altered_on_the_way_publishes_what_it_would(
    altering: Gate,
    s3_url: str,
    tiny: TinyZoo,
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A byte of every tenth piece, from its first request to its last."""
    # A request whose end was altered waits for the server, and the server for its end.
    impatient = S3Options(read_timeout=2, attempts=10)
    monkeypatch.setattr("tintray.storage.artifacts.s3.S3Options", lambda: impatient)
    altering.corrupt = 0.1
    found = api.run(tiny.spec(s3_url, catalog=f"sqlite:///{tmp_path}/catalog.db"))
    altering.corrupt = 0.0
    assert hashes(found.url) == hashes(published.summary.url)


def test_what_is_refused_for_good_has_a_kind_of_its_own(altering: Gate, s3_url: str) -> None:
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    store = S3Store(S3Url(bucket, prefix), S3Options(read_timeout=0.5, attempts=2))
    altering.corrupt = 1.0
    # Now and then what is altered goes through, or leaves the server waiting.
    raised: list[type[StorageError]] = []
    while RefusedError not in raised and len(raised) < 20:
        try:
            store.exists("key")
        except StorageError as error:
            raised.append(type(error))
    assert set(raised) <= {RefusedError, AwayError} and RefusedError in raised


def answering(*answers: bytes) -> tuple[str, list[bytes]]:
    """A server that answers so, and then as before; and the requests that it has had."""
    heard: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(1 << 16))
                connection.sendall(answers[min(len(heard), len(answers)) - 1])

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}", heard


@pytest.mark.parametrize(("code", "times"), [("InvalidRange", 1), ("InvalidRaoge", 3)])
def test_a_code_that_no_server_has_is_asked_for_again(
    code: str, times: int, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"<Error><Code>{code}</Code></Error>".encode()
    head = f"HTTP/1.1 416 Range\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    url, heard = answering(head.encode() + body)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    store = S3Store(S3Url("bucket", "prefix"), S3Options(attempts=3))
    with suppress(RefusedError):
        assert store.get("key", 5, 9) == b""
    assert len(heard) == times
