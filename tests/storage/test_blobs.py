"""Blobs, the content cache and sealed records: what was altered is found and named."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest

from tintray.errors import InputError, IntegrityError, NotFoundError, StorageError
from tintray.seals import unseal
from tintray.storage.artifacts.blobs import BlobRef, blob_key, fetch_blob, get_blob, put_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.records import seal


def test_a_blob_is_named_by_its_content_written_once_and_mended_by_writing_it_again(
    each_store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    ref, cache = put_blob(each_store, b"weights"), tmp_path / "cache"
    key = f"blobs/{ref.sha256[:2]}/{ref.sha256}"
    assert ref == put_blob(each_store, tmp_path / "file")
    assert ref == BlobRef(hashlib.sha256(b"weights").hexdigest(), 7)
    assert [entry.key for entry in each_store.list()] == [key] == [blob_key(ref.sha256)]
    assert get_blob(each_store, ref) == get_blob(each_store, ref.sha256) == b"weights"
    local = fetch_blob(each_store, ref, cache)
    if not isinstance(each_store, FolderStore):  # a damaged download is fetched again
        local.write_bytes(b"weight$")
    assert fetch_blob(each_store, ref, cache).read_bytes() == b"weights"
    for altered in (b"weight$", b"wei", b"weights!"):
        each_store.put(key, altered, overwrite=True)
        if local.is_relative_to(cache):
            local.unlink()
        for read in (lambda: get_blob(each_store, ref), lambda: fetch_blob(each_store, ref, cache)):
            with pytest.raises(IntegrityError, match=f"{key} in .* is truncated or altered"):
                read()
        assert not [path for path in cache.rglob("*") if path.is_file()]
        put_blob(each_store, b"weights")
        assert fetch_blob(each_store, ref, cache).read_bytes() == b"weights"


def test_names_that_are_no_hash_are_refused(store: FolderStore) -> None:
    with pytest.raises(InputError, match="expected a sha256"):
        get_blob(store, "../../etc/passwd")
    with pytest.raises(NotFoundError, match="blobs/00/0000"):
        get_blob(store, "0" * 64)


def test_a_result_is_remembered_until_it_is_gone_or_altered(
    store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    assert lookup(store, "labels", "k") is None
    ref = remember(store, "labels", "k", b"logits")
    assert (lookup(store, "labels", "k"), get_blob(store, ref)) == (ref, b"logits")
    assert lookup(store, "labels", "k2") is lookup(store, "vectors", "k") is None
    store.delete(blob_key(ref.sha256))
    assert lookup(store, "labels", "k") is None
    remember(store, "labels", "k", b"logits")
    sound = store.get("cache/labels/k.json")
    for record in (sound.replace(b": 6", b": 7"), seal({"sha256": "x"}, "it")):
        store.put("cache/labels/k.json", record, overwrite=True)
        with caplog.at_level(logging.WARNING):
            assert lookup(store, "labels", "k") is None
        assert "cache/labels/k.json" in caplog.text
        caplog.clear()


def test_every_flipped_byte_of_a_sealed_record_is_found() -> None:
    document = {"name": "é", "metrics": {"a": [1, 2.5, None, True]}, "files": {"x": "y"}}
    data = seal(document, "it")
    assert unseal(data, "it") == document
    flipped = [data[:n] + bytes([byte ^ 1]) + data[n + 1 :] for n, byte in enumerate(data)]
    for altered in (*flipped, data[:-1], b"", b"[]", b"null"):
        with pytest.raises(IntegrityError, match=r"^it is truncated or altered"):
            unseal(altered, "it")


def test_a_record_takes_json_only_and_drops_passwords() -> None:
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"a": deep}
    for document in ({"loss": float("nan")}, {"path": object()}, deep):
        with pytest.raises(StorageError, match="the manifest: expected a document"):
            seal(document, "the manifest")
    assert b"hunter2" not in seal({"catalog": "postgresql://me:hunter2@host/db"}, "it")
