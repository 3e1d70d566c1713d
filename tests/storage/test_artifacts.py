"""The contract of the artifact store, the same for every kind of store."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tintray.errors import InputError, NotFoundError
from tintray.storage.artifacts.protocol import ArtifactStore, Entry

RANGES = [(0, 10), (3, None), (5, 5), (7, 3), (90, 200), (100, None), (500, 600)]


class Halves:
    """Bytes in two pieces."""

    def __init__(self, data: bytes) -> None:
        self.size, self._data = len(data), data

    def __iter__(self) -> Iterator[memoryview]:
        middle = self.size // 2
        yield memoryview(self._data)[:middle]
        yield memoryview(self._data)[middle:]


@pytest.fixture
def store(each_store: ArtifactStore) -> ArtifactStore:
    return each_store


def test_what_was_put_is_read_back_and_kept_unless_overwriting_is_asked_for(
    store: ArtifactStore, tmp_path: Path
) -> None:
    data = random.Random(0).randbytes(100_000)
    (tmp_path / "source").write_bytes(data)
    for key, source in {
        "bytes": data,
        "view": memoryview(data),
        "file": tmp_path / "source",
        "pieces": Halves(data),
    }.items():
        assert store.put(f"a/{key}", source)
        assert store.get(f"a/{key}") == data
        assert not store.put(f"a/{key}", b"second")
    assert store.put("a/empty", b"")
    assert store.stat("a/bytes") == Entry("a/bytes", 100_000)
    assert (store.stat("a/empty"), store.stat("a")) == (Entry("a/empty", 0), None)
    assert store.fetch("a/file", tmp_path / "new" / "copy").read_bytes() == data
    assert store.fetch("a/empty", tmp_path / "copy").read_bytes() == store.get("a/empty") == b""
    assert store.put("key", data[:100]) and store.put("key", data[100:200], overwrite=True)
    for start, stop in RANGES:
        assert store.get("key", start, stop) == data[100:200][start:stop], (start, stop)


def test_what_is_not_there_is_named_and_deleting_it_is_no_error(
    store: ArtifactStore, tmp_path: Path
) -> None:
    store.put("a/b", b"")
    for missing in ("nothing", "a", "a/b/c"):
        for start, stop in ((0, None), (5, 5)):
            with pytest.raises(NotFoundError, match=missing):
                store.get(missing, start, stop)
        with pytest.raises(NotFoundError, match=missing):
            store.fetch(missing, tmp_path / "copy")
        assert not store.exists(missing)
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == []
    for key in ("a/b", "a/b", "never/there"):
        store.delete(key)
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
    assert [store.get(key) for key in keys] == [key.encode() for key in keys]


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
    for key in LEAVING + UNFIT:
        for use in (
            lambda key: store.put(key, b"x"),
            lambda key: store.fetch(key, tmp_path / "copy"),
            *(store.get, store.delete, store.exists, store.touch, store.local_path),
        ):
            with pytest.raises(InputError, match="artifact key"):
                use(key)
    assert list(store.list()) == []


def test_an_artifact_that_is_touched_begins_its_age_anew(store: ArtifactStore) -> None:
    store.put("a/b", b"x")
    before = store.stat("a/b")
    time.sleep(1.1)  # an S3 server tells times in whole seconds
    assert (store.touch("a/b"), store.touch("nothing")) == (True, False)
    after = store.stat("a/b")
    assert before is not None and after is not None
    assert after == before == Entry("a/b", 1)
    assert before.modified < after.modified == next(store.list()).modified < time.time() + 60
    assert store.get("a/b") == b"x"
