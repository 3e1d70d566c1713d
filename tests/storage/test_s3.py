"""What only an S3 store does: parts, and the sentences for servers that refuse or do not answer."""

from __future__ import annotations

import contextlib
import logging
import pickle
import random
import socket
import tracemalloc
from pathlib import Path

import pytest

from tests.storage.test_artifacts import Halves
from tintray.errors import NotFoundError, StorageError
from tintray.storage.artifacts.blobs import fetch_blob, get_blob, put_blob
from tintray.storage.artifacts.protocol import Entry
from tintray.storage.artifacts.publish import publish_merge
from tintray.storage.artifacts.s3 import S3Store
from tintray.storage.artifacts.s3_client import S3Options
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.urls import S3Url

QUICK = S3Options(connect_timeout=1, read_timeout=0.5, attempts=2)
MIB = 1 << 20


def store_at(url: str, options: S3Options = QUICK) -> S3Store:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return S3Store(S3Url(bucket, prefix), options)


def test_large_artifacts_travel_in_parts(s3_url: str, tmp_path: Path) -> None:
    store = store_at(s3_url, S3Options(part_size=5 * MIB, threads=4))
    file, data = tmp_path / "weights", random.Random(0).randbytes(23 * MIB + 7)
    file.write_bytes(data)
    ref = put_blob(store, file)
    assert fetch_blob(store, ref, tmp_path / "cache").read_bytes() == get_blob(store, ref) == data
    key = f"blobs/{ref.sha256[:2]}/{ref.sha256}"
    assert store.get(key, 5 * MIB - 3, 5 * MIB + 3) == data[5 * MIB - 3 : 5 * MIB + 3]
    assert store.put("from-memory", memoryview(data))
    assert put_blob(store, Halves(data)) == ref
    assert store.put("in-pieces", Halves(data))
    assert store.get("in-pieces") == data
    assert not store.put("from-memory", file)
    assert store.stat("from-memory") == Entry("from-memory", len(data))


def test_memory_is_bounded_by_the_parts_and_not_by_the_artifact(
    s3_url: str, tmp_path: Path
) -> None:
    store = store_at(s3_url, S3Options(part_size=5 * MIB, threads=2, parts_in_memory=2))
    store.check_writable()
    file = tmp_path / "weights"
    file.write_bytes(bytes(64 * MIB))
    tracemalloc.start()
    try:
        ref = put_blob(store, file)
        fetch_blob(store, ref, tmp_path / "cache")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * MIB


def test_a_store_can_be_sent_to_another_process_and_need_have_no_prefix(s3_url: str) -> None:
    store = open_store(s3_url)
    store.put("key", b"value")
    again = pickle.loads(pickle.dumps(store))
    assert (again.url, again.get("key")) == (store.url, b"value")
    whole, prefix = store_at("s3://tintray-tests"), s3_url.removeprefix("s3://tintray-tests/")
    assert whole.get(f"{prefix}/key") == b"value"
    assert [entry.key for entry in whole.list(prefix)] == [f"{prefix}/key"]


def test_a_missing_bucket_is_named(s3_url: str, tmp_path: Path) -> None:
    store = store_at("s3://no-such-bucket/prefix")
    for use in (
        store.check_writable,
        lambda: store.put("key", b"x"),
        lambda: store.get("key"),
        lambda: list(store.list()),
    ):
        with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'; create it"):
            use()


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "hunter2"}, "refused the credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "refused"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "needs credentials and found none; set AWS_ACCESS",
        ),
        ({"AWS_PROFILE": "team"}, "profile 'team' does not exist; correct AWS_PROFILE"),
        ({"AWS_ENDPOINT_URL": "localhost"}, "correct AWS_ENDPOINT_URL"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_without_secrets(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], problem: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    store = store_at(s3_url)
    for use in (store.check_writable, lambda: store.get("key"), lambda: store.exists("key")):
        with pytest.raises(StorageError, match=problem.partition(" ")[0]) as raised:
            use()
        assert "hunter2" not in str(raised.value)
    with pytest.raises(StorageError, match=problem):
        store.check_writable()


def test_a_server_that_is_not_there_is_a_sentence_without_credentials(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:hunter2@{place}")
        with pytest.raises(StorageError, match="cannot be reached; check AWS_ENDP") as raised:
            store_at(s3_url).check_writable()
    assert place in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_silent_server_is_given_up_after_as_many_tries_as_are_allowed(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0)
        port = silent.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        store = store_at(s3_url)
        for use in (store.check_writable, lambda: store.fetch("key", tmp_path / "copy")):
            with pytest.raises(StorageError, match="did not answer in time"):
                use()
            assert callers(silent) == QUICK.attempts
    assert list(tmp_path.iterdir()) == []


def callers(server: socket.socket) -> int:
    """How many connections wait to be accepted."""
    found = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            found += 1
    return found


def test_credentials_reach_neither_logs_nor_artifacts(
    s3_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO):
        store = open_store(s3_url)
        manifest = {"store": s3_url, "endpoint": "http://u:testing@h"}
        publish_merge(store, "ten", {"a": b"x"}, manifest, version=1)
        with pytest.raises(NotFoundError) as raised:
            store.get("nothing")
    written = b"".join(store.get(entry.key) for entry in store.list())
    assert "testing" not in caplog.text + str(raised.value) + store.url + repr(store)
    assert b"testing" not in written
