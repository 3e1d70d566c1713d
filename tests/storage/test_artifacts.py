"""The contract of the artifact store, the same for every kind of store."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tintray.errors import InputError, NotFoundError
from tintray.storage.artifacts.protocol import ArtifactStore, Entry


@pytest.fixture
def store(each_store: ArtifactStore) -> ArtifactStore:
    return each_store


def test_what_was_put_is_read_back(store: ArtifactStore, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(100_000)
    file = tmp_path / "source"
    file.write_bytes(data)
    assert store.put("a/bytes", data)
    assert store.put("a/view", memoryview(data))
    assert store.put("a/file", file)
    assert store.put("a/empty", b"")
    assert store.get("a/bytes") == store.get("a/view") == store.get("a/file") == data
    assert store.get("a/empty") == b""
    assert store.stat("a/bytes") == Entry("a/bytes", 100_000)
    assert (store.stat("a/empty"), store.stat("a")) == (Entry("a/empty", 0), None)
    assert store.fetch("a/file", tmp_path / "new" / "copy").read_bytes() == data
    assert store.fetch("a/empty", tmp_path / "copy").read_bytes() == b""


RANGES = [(0, 10), (3, None), (5, 5), (7, 3), (90, 200), (100, None), (500, 600)]


def test_a_range_is_a_slice(store: ArtifactStore) -> None:
    data = bytes(range(100))
    store.put("key", data)
    for start, stop in RANGES:
        assert store.get("key", start, stop) == data[start:stop], (start, stop)


def test_an_artifact_is_kept_unless_overwriting_is_asked_for(store: ArtifactStore) -> None:
    assert store.put("key", b"first")
    assert not store.put("key", b"second")
    assert store.get("key") == b"first"
    assert store.put("key", b"third", overwrite=True)
    assert store.get("key") == b"third"


def test_what_is_not_there_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    store.put("a/b", b"")
    for missing in ("nothing", "a", "a/b/c"):
        with pytest.raises(NotFoundError, match=missing):
            store.get(missing)
        with pytest.raises(NotFoundError, match=missing):
            store.fetch(missing, tmp_path / "copy")
        assert not store.exists(missing)
    assert not (tmp_path / "copy").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_deleting_is_idempotent(store: ArtifactStore) -> None:
    store.put("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/there")
    assert not store.exists("a/b")
    store.check_writable()  # which leaves nothing behind
    assert list(store.list()) == []


def test_listing_is_by_prefix_in_byte_order(store: ArtifactStore) -> None:
    keys = ["a/1", "a/10", "a/2", "a-b", "a.c", "ab/x", "b", "é/ü", "a/deep/er/x", "sp ace/+%=&#?"]
    for key in keys:
        store.put(key, key.encode())
    ordered = sorted(keys, key=str.encode)
    assert list(store.list()) == [Entry(key, len(key.encode())) for key in ordered]
    for prefix in ("a", "a/", "a/1", "a/d", "a/deep/er", "zz", "é", "a/1/", "sp ace/+"):
        found = [entry.key for entry in store.list(prefix)]
        assert found == [key for key in ordered if key.startswith(prefix)], prefix
    for key in keys:
        assert store.get(key) == key.encode()


def test_of_racing_writers_one_writes_and_readers_see_it_whole(store: ArtifactStore) -> None:
    contents = [bytes([number]) * 200_000 for number in range(6)]
    barrier = threading.Barrier(len(contents))

    def write(content: bytes) -> bytes:
        barrier.wait()
        store.put("race", content)
        return store.get("race")

    with ThreadPoolExecutor(len(contents)) as pool:
        seen = set(pool.map(write, contents))
    assert store.get("race") in contents
    assert seen <= set(contents)


LEAVING = ["", "/etc/passwd", "../x", "a/../../x", "a/..", ".", "a/./b", "a//b", "a/", "a\\b"]
UNFIT = ["a\0b", "a\nb", "x" * 256, "/".join(["x" * 200] * 6), "\ud800", ".tmp/x"]


def test_a_key_that_would_leave_the_store_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    uses: list[Callable[[str], object]] = [
        lambda key: store.put(key, b"x"),
        store.get,
        lambda key: store.fetch(key, tmp_path / "copy"),
        store.delete,
        store.exists,
        store.touch,
        store.local_path,
    ]
    for key in LEAVING + UNFIT:
        for use in uses:
            with pytest.raises(InputError, match="artifact key"):
                use(key)
    assert list(store.list()) == []


def test_an_artifact_that_is_touched_begins_its_age_anew(store: ArtifactStore) -> None:
    store.put("a/b", b"x")
    before = store.stat("a/b")
    time.sleep(1.1)  # an S3 server tells times in whole seconds
    assert (store.touch("a/b"), store.touch("nothing")) == (True, False)
    after = store.stat("a/b")
    assert before is not None
    assert after is not None
    assert after == before == Entry("a/b", 1)
    assert after.modified > before.modified
    assert abs(after.modified - time.time()) < 60
    assert [entry.modified for entry in store.list()] == [after.modified]
    assert store.get("a/b") == b"x"
