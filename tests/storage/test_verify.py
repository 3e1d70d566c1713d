"""Any flipped byte in any artifact of a store is found and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tintray.storage.artifacts.blobs import blob_key, hash_bytes
from tintray.storage.artifacts.cache import remember
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import (
    MergeRef,
    manifest_digest,
    publish_merge,
    read_manifest,
)
from tintray.storage.artifacts.records import seal
from tintray.storage.artifacts.verify import verify_merge, verify_store

REF = MergeRef("ten", 1)


@pytest.fixture
def full(store: ArtifactStore) -> ArtifactStore:
    """A store with at least one artifact of every sort."""
    files: dict[str, bytes | Path] = {"backbone": b"backbone", "tints/a": b"tint"}
    publish_merge(store, REF.name, files, {"tasks": ["a"]})
    of_blocks = f"{blob_key(hash_bytes(b'backbone').sha256)}.blocks"  # as 0.1.0 wrote them
    store.put(of_blocks, seal({"blocks": ["0" * 64]}, of_blocks))
    remember(store, "labels", "k", b"labels", {})
    return store


def test_a_sound_store_has_no_damage(full: ArtifactStore) -> None:
    known = {REF.manifest_key: manifest_digest(full, REF)}
    found = verify_store(full, (), known)
    entries = list(full.list())
    assert found.damaged == ()
    assert (found.artifacts, found.size) == (len(entries), sum(entry.size for entry in entries))
    assert verify_merge(full, REF, known[REF.manifest_key]).damaged == ()


def test_a_flipped_byte_of_any_artifact_is_named(full: ArtifactStore) -> None:
    step = 1 if isinstance(full, FolderStore) else 3  # a server takes its time
    for entry in list(full.list())[::step]:
        sound = full.get(entry.key)
        ends = {0, len(sound) - 1} if isinstance(full, FolderStore) else set()
        for position in {len(sound) // 2} | ends:
            altered = bytearray(sound)
            altered[position] ^= 1
            full.put(entry.key, bytes(altered), overwrite=True)
            assert {d.key for d in verify_store(full).damaged} == {entry.key}, position
        full.put(entry.key, sound[:-1], overwrite=True)
        assert {damage.key for damage in verify_store(full).damaged} == {entry.key}
        full.put(entry.key, sound, overwrite=True)
    assert verify_store(full).damaged == ()


def test_what_is_missing_is_named(full: ArtifactStore) -> None:
    sha256 = read_manifest(full, REF)["files"]["tints/a"]["sha256"]
    full.delete(blob_key(sha256))
    found = verify_store(full, [sha256, "f" * 64])
    assert [d.key for d in found.damaged] == [blob_key(sha256), blob_key("f" * 64)]
    assert [d.key for d in verify_merge(full, REF, None).damaged] == [blob_key(sha256)]
    full.delete(REF.manifest_key)
    assert [d.key for d in verify_merge(full, REF, None).damaged] == [REF.manifest_key]


def test_a_manifest_that_was_replaced_by_a_sound_one_is_named(full: ArtifactStore) -> None:
    digest = manifest_digest(full, REF)
    full.delete(REF.manifest_key)
    publish_merge(full, "other", {"tints/a": b"other"}, {})
    other = full.get("merges/other/v1/manifest.json")
    full.put(REF.manifest_key, other, overwrite=True)
    problems = [
        d.problem for d in verify_merge(full, REF, digest).damaged if "replaced" in d.problem
    ]
    assert len(problems) == 1


def test_a_file_of_a_merge_folder_that_is_no_link_is_read_too(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    publish_merge(store, "ten", {"tints/a": b"tint"}, {})
    store.put("merges/ten/v1/tints/a", b"Tint", overwrite=True)
    store.put("merges/ten/v1/more", b"more")
    found = verify_store(store).damaged
    assert [damage.key for damage in found] == ["merges/ten/v1/more", "merges/ten/v1/tints/a"]
