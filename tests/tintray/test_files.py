"""Foreign files: whatever they hold, or are, ends in one of our errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tintray.errors import CheckpointError, DataError
from tintray.files import file_in, foreign, read_bytes, read_json


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def closed(path: Path) -> None:
    path.symlink_to(path)


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


@pytest.mark.parametrize("make", [folder, pipe, closed])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
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
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.json").write_bytes(mark + b'{"a": [1, null, Infinity]}')
        assert read_json(tmp_path / "a.json", "x") == {"a": [1, None, float("inf")]}


def test_a_file_that_is_not_there_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json", "x")
    assert file_in(tmp_path, "a.json", "x") is None


class Panic(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyError("a"), MemoryError(), RecursionError(), Panic("b\nc")])
def test_whatever_a_library_raises_becomes_our_error(error: BaseException) -> None:
    with (
        pytest.raises(CheckpointError, match=r"^base: it cannot be used \(\w+"),
        foreign("base: it cannot be used"),
    ):
        raise error


def test_what_ends_the_process_or_is_ours_passes() -> None:
    for error in (KeyboardInterrupt(), SystemExit(3), DataError("as it was")):
        with pytest.raises(type(error)), foreign("x"):
            raise error


def test_links_stay_in_their_folder_or_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    inner = tmp_path / "models--a--b" / "snapshots" / "0" / "x"
    blobs = tmp_path / "models--a--b" / "blobs"
    inner.mkdir(parents=True)
    blobs.mkdir()
    for path in (blobs / "1", inner / "own", tmp_path / "secret"):
        path.write_text("")
    snapshot = inner.parent
    (snapshot / "in").symlink_to("x/own")
    (snapshot / "blob").symlink_to("../../blobs/1")
    (snapshot / "out").symlink_to(tmp_path / "secret")
    (snapshot / "nowhere").symlink_to("no")
    assert [file_in(snapshot, name, "x") for name in ("in", "blob")] == [
        snapshot / "in",
        snapshot / "blob",
    ]
    with pytest.raises(CheckpointError, match="nnn"):
        file_in(snapshot, "n" * 300, "x")
    for name in ("out", "nowhere", "x"):
        with pytest.raises(CheckpointError, match=name):
            file_in(snapshot, name, "x")
    with pytest.raises(CheckpointError, match="outside of its folder"):  # the cache's links alone
        (inner / "blob").symlink_to("../../../blobs/1")
        file_in(inner, "blob", "x")
