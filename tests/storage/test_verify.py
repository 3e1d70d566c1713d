"""Any flipped byte in any artifact of a store is found and named."""

from __future__ import annotations

from typing import Any

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
from tintray.storage.artifacts.verify import Verified, verify_merge, verify_store

REF = MergeRef("ten", 1)


def filled(store: ArtifactStore) -> ArtifactStore:
    """A store with at least one artifact of every sort."""
    files: dict[str, Any] = {"backbone": b"backbone", "tints/a": b"tint"}
    publish_merge(store, REF.name, files, {"tasks": ["a"]}, version=1)
    of_blocks = f"{blob_key(hash_bytes(b'backbone').sha256)}.blocks"  # as 0.1.0 wrote them
    store.put(of_blocks, seal({"blocks": ["0" * 64]}, of_blocks))
    remember(store, "labels", "k", b"labels")
    return store


@pytest.fixture
def full(store: FolderStore) -> ArtifactStore:
    return filled(store)


def damaged(found: Verified) -> list[str]:
    return [damage.key for damage in found.damaged]


def test_a_sound_store_has_no_damage_and_an_altered_one_is_told(each_store: ArtifactStore) -> None:
    full = filled(each_store)
    known = {REF.manifest_key: manifest_digest(full, REF)}
    found = verify_store(full, (), known)
    entries = list(full.list())
    assert found == Verified(len(entries), sum(entry.size for entry in entries), ())
    assert verify_merge(full, REF, known[REF.manifest_key]).damaged == ()
    blob = next(entry.key for entry in entries if entry.key.startswith("blobs/"))
    full.put(blob, b"altered", overwrite=True)
    assert damaged(verify_store(full)) == [blob]


def test_a_flipped_byte_of_any_artifact_is_named(full: ArtifactStore) -> None:
    for entry in list(full.list()):
        sound = full.get(entry.key)
        middle = {len(sound) // 2, 0, len(sound) - 1}
        flipped = [sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :] for at in middle]
        for altered in (*flipped, sound[:-1]):
            full.put(entry.key, altered, overwrite=True)
            assert set(damaged(verify_store(full))) == {entry.key}
        full.put(entry.key, sound, overwrite=True)
    # A file of a merge's folder need be no link to its blob.
    full.put("merges/ten/v1/tints/a", b"Tint", overwrite=True)
    full.put("merges/ten/v1/more", b"more")
    assert damaged(verify_store(full)) == ["merges/ten/v1/more", "merges/ten/v1/tints/a"]


def test_what_is_missing_or_replaced_by_something_sound_is_named(full: ArtifactStore) -> None:
    digest = manifest_digest(full, REF)
    sha256 = read_manifest(full, REF)["files"]["tints/a"]["sha256"]
    full.delete(blob_key(sha256))
    expected = [blob_key(sha256), blob_key("f" * 64)]
    assert damaged(verify_store(full, [sha256, "f" * 64])) == expected
    assert damaged(verify_merge(full, REF, None)) == expected[:1]
    publish_merge(full, "other", {"tints/a": b"other"}, {}, version=1)
    full.put(REF.manifest_key, full.get("merges/other/v1/manifest.json"), overwrite=True)
    problems = [damage.problem for damage in verify_merge(full, REF, digest).damaged]
    assert len([problem for problem in problems if "it was replaced" in problem]) == 1
    full.delete(REF.manifest_key)
    assert damaged(verify_merge(full, REF, None)) == [REF.manifest_key]
