"""Foreign files: whatever they hold, or are, ends in one of our errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tintray.errors import CheckpointError, DataError
from tintray.files import file_in, foreign, read_bytes, read_json

CONTENTS = {
    "nothing": b"",
    "a list": b"[]",
    "a number": b"1",
    "half an object": b'{"a": ',
    "no text": b"\xff\xfe\xff",
    "too deep a list": b"[" * 100_000,
    "too deep an object": b'{"a":' * 100_000,
    "too long a number": b'{"a": ' + b"9" * 5000 + b"}",
    "too much": b'{"a": "' + b"a" * 2000 + b'"}',
}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(CheckpointError, match=r"^base: .*config\.json (is no regular|cannot be)"):
        read_bytes(path, "base")


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_what_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    limit = 1000 if content.startswith(b'{"a": "') else 2**20
    with pytest.raises(DataError, match=r"^x: .*config\.json "):
        read_json(path, "x", limit=limit, error=DataError)


def test_an_object_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):  # told apart
        read_json(tmp_path / "a.json", "x")
    assert file_in(tmp_path, "a.json", "x") is None
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.json").write_bytes(mark + b'{"a": [1, null, Infinity]}')
        assert read_json(tmp_path / "a.json", "x") == {"a": [1, None, float("inf")]}


class Panic(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyError("a"), MemoryError(), RecursionError(), Panic("b\nc")])
def test_whatever_a_library_raises_becomes_our_error(error: BaseException) -> None:
    with pytest.raises(CheckpointError, match=r"^it is bad \(\w+"), foreign("it is bad"):
        raise error
    for kept in (KeyboardInterrupt(), SystemExit(3), DataError("as it was")):
        with pytest.raises(type(kept)), foreign("x"):
            raise kept


def test_links_stay_in_their_folder_or_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    inner, blobs = (tmp_path / "models--a--b" / name for name in ("snapshots/0/x", "blobs"))
    inner.mkdir(parents=True)
    blobs.mkdir()
    for path in (blobs / "1", inner / "own", tmp_path / "secret"):
        path.write_text("")
    snapshot = inner.parent
    (snapshot / "in").symlink_to("x/own")
    (snapshot / "blob").symlink_to("../../blobs/1")
    (snapshot / "out").symlink_to(tmp_path / "secret")
    (snapshot / "nowhere").symlink_to("no")
    for name in ("in", "blob"):
        assert file_in(snapshot, name, "x") == snapshot / name
    for name in ("n" * 300, "out", "nowhere", "x"):
        with pytest.raises(CheckpointError, match=name[:40]):
            file_in(snapshot, name, "x")
    with pytest.raises(CheckpointError, match="outside of its folder"):  # the cache's links alone
        (inner / "blob").symlink_to("../../../blobs/1")
        file_in(inner, "blob", "x")
