"""Blobs, the content cache and sealed records: what was altered is found and named."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.services import in_a_folder
from tintray.errors import InputError, IntegrityError, NotFoundError, StorageError
from tintray.storage.artifacts.blobs import BlobRef, blob_key, fetch_blob, get_blob, put_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.records import seal, unseal


def test_a_blob_is_named_by_its_content_and_written_once(
    store: ArtifactStore, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"weights")
    ref = put_blob(store, b"weights")
    assert put_blob(store, file) == ref
    assert ref == BlobRef(hashlib.sha256(b"weights").hexdigest(), 7)
    assert [entry.key for entry in store.list()] == [f"blobs/{ref.sha256[:2]}/{ref.sha256}"]
    assert get_blob(store, ref) == get_blob(store, ref.sha256) == b"weights"
    assert fetch_blob(store, ref, tmp_path / "cache").read_bytes() == b"weights"


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend"])
def test_an_altered_blob_is_found_and_named(
    store: ArtifactStore, tmp_path: Path, damage: str
) -> None:
    data = bytes(range(256)) * 8
    ref = put_blob(store, data)
    bad = {"flip": data[:700] + b"\0" + data[701:], "truncate": data[:-1], "extend": data + b"x"}
    key = blob_key(ref.sha256)
    store.put(key, bad[damage], overwrite=True)
    for read in (lambda: get_blob(store, ref), lambda: fetch_blob(store, ref, tmp_path / "cache")):
        with pytest.raises(IntegrityError, match=f"{key} in .* is truncated or altered"):
            read()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_blob_that_was_cut_short_is_mended_by_writing_it_again(store: ArtifactStore) -> None:
    ref = put_blob(store, b"weights")
    store.put(blob_key(ref.sha256), b"wei", overwrite=True)
    put_blob(store, b"weights")
    assert get_blob(store, ref) == b"weights"


def test_a_damaged_download_is_fetched_again(store: ArtifactStore, tmp_path: Path) -> None:
    ref = put_blob(store, b"weights")
    local = fetch_blob(store, ref, tmp_path)
    if local.is_relative_to(tmp_path) and store.local_path(blob_key(ref.sha256)) is None:
        local.write_bytes(b"weight$")
    assert fetch_blob(store, ref, tmp_path).read_bytes() == b"weights"


@in_a_folder
def test_names_that_are_no_hash_are_refused(store: ArtifactStore) -> None:
    with pytest.raises(InputError, match="expected a sha256"):
        get_blob(store, "../../etc/passwd")
    with pytest.raises(NotFoundError, match="blobs/00/0000"):
        get_blob(store, "0" * 64)


@in_a_folder
def test_a_result_is_remembered_by_what_it_was_computed_from(store: ArtifactStore) -> None:
    assert lookup(store, "labels", "k1") is None
    entry = remember(store, "labels", "k1", b"logits", {"examples": 3})
    assert lookup(store, "labels", "k1") == entry
    assert (entry.size, entry.meta) == (6, {"examples": 3})
    assert get_blob(store, entry.ref) == b"logits"
    assert lookup(store, "labels", "k2") is None
    assert lookup(store, "vectors", "k1") is None


@in_a_folder
def test_a_remembered_result_that_is_gone_or_altered_counts_as_none(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    entry = remember(store, "labels", "k", b"logits", {"seconds": 1.5})
    store.delete(blob_key(entry.sha256))
    assert lookup(store, "labels", "k") is None
    remember(store, "labels", "k", b"logits", {"seconds": 1.5})
    record = store.get("cache/labels/k.json").replace(b"1.5", b"2.5")
    store.put("cache/labels/k.json", record, overwrite=True)
    with caplog.at_level(logging.WARNING):
        assert lookup(store, "labels", "k") is None
    assert "cache/labels/k.json" in caplog.text


def test_every_flipped_byte_of_a_sealed_record_is_found() -> None:
    document = {"name": "é", "metrics": {"a": [1, 2.5, None, True]}, "files": {"x": "y"}}
    data = seal(document, "it")
    assert unseal(data, "it") == document
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1
        with pytest.raises(IntegrityError, match=r"^it is truncated or altered"):
            unseal(bytes(altered), "it")
    for short in (data[:-1], b"", b"[]", b"null"):
        with pytest.raises(IntegrityError):
            unseal(short, "it")


def test_a_record_takes_json_only_and_drops_passwords() -> None:
    with pytest.raises(StorageError, match="the manifest: expected a document"):
        seal({"loss": float("nan")}, "the manifest")
    with pytest.raises(StorageError, match="the manifest"):
        seal({"path": object()}, "the manifest")
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"a": deep}
    with pytest.raises(StorageError, match="the manifest"):
        seal(deep, "the manifest")
    assert b"hunter2" not in seal({"catalog": "postgresql://me:hunter2@host/db"}, "it")
