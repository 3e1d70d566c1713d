"""Publishing: visible only when whole, never changed, versions given once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.services import in_a_folder
from tintray.errors import InputError, IntegrityError, NotFoundError, SpecError, StorageError
from tintray.storage.artifacts import blobs
from tintray.storage.artifacts.blobs import BlobRef, blob_key, put_blob
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import (
    MergeRef,
    list_merges,
    merge_file,
    next_version,
    parse_merge_url,
    publish_merge,
    read_manifest,
)

FILES: dict[str, bytes | Path] = {
    "backbone.safetensors": b"backbone",
    "tints/mnist.safetensors": b"tint",
    "tints/copy.safetensors": b"tint",
}


def test_a_published_merge_is_listed_and_read_back(store: ArtifactStore, tmp_path: Path) -> None:
    url = publish_merge(store, "ten", FILES, {"tasks": ["mnist"]})
    assert url == f"{store.url}/merges/ten/v1"
    assert list_merges(store) == [MergeRef("ten", 1)]
    manifest = read_manifest(store, MergeRef("ten", 1))
    assert (manifest["tasks"], manifest["name"], manifest["version"]) == (["mnist"], "ten", 1)
    assert sorted(manifest["files"]) == sorted(FILES)
    for name, content in FILES.items():
        assert merge_file(store, manifest, name, tmp_path / "cache").read_bytes() == content


def test_its_url_leads_back_to_it(store: ArtifactStore) -> None:
    url = publish_merge(store, "ten", FILES, {})
    again, ref = parse_merge_url(url)
    assert (again.url, ref) == (store.url, MergeRef("ten", 1))
    assert read_manifest(again, ref)["name"] == "ten"
    for wrong in ("", "ten/v1", f"{store.url}/merges/ten", f"{store.url}/merges/ten/v0"):
        with pytest.raises(InputError, match="expected the URL of a published merge"):
            parse_merge_url(wrong)


@in_a_folder
def test_versions_go_up_and_names_are_apart(store: ArtifactStore) -> None:
    urls = [publish_merge(store, name, FILES, {}) for name in ("b", "a", "b", "b-2", "b")]
    tails = [url.rpartition("/merges/")[2] for url in urls]
    assert tails == ["b/v1", "a/v1", "b/v2", "b-2/v1", "b/v3"]
    assert [str(ref) for ref in list_merges(store)] == ["a/v1", "b/v1", "b/v2", "b/v3", "b-2/v1"]
    assert (next_version(store, "b"), next_version(store, "new")) == (4, 1)


def test_a_published_version_never_changes(store: ArtifactStore) -> None:
    first = publish_merge(store, "ten", FILES, {"seconds": 1}, version=4)
    before = store.get("merges/ten/v4/manifest.json")
    assert publish_merge(store, "ten", FILES, {"seconds": 2}, version=4) == first
    with pytest.raises(StorageError, match=r"ten/v4 is already published .* with other files"):
        publish_merge(store, "ten", {"backbone.safetensors": b"other"}, {}, version=4)
    assert store.get("merges/ten/v4/manifest.json") == before


def test_racing_publishers_never_share_a_version(store: ArtifactStore) -> None:
    barrier = threading.Barrier(6)

    def publish(number: int) -> tuple[str, int]:
        barrier.wait()
        return publish_merge(store, "race", {"file": bytes([number])}, {"by": number}), number

    with ThreadPoolExecutor(6) as pool:
        published = dict(pool.map(publish, range(6)))
    assert len(published) == 6
    for url, number in published.items():
        assert read_manifest(store, parse_merge_url(url)[1])["by"] == number
    assert len(list_merges(store)) == 6


def test_nothing_is_visible_before_the_manifest(store: ArtifactStore) -> None:
    with pytest.raises(StorageError, match="manifest of ten/v1"):
        publish_merge(store, "ten", FILES, {"loss": float("nan")})
    assert list_merges(store) == []
    with pytest.raises(NotFoundError):
        read_manifest(store, MergeRef("ten", 1))
    assert publish_merge(store, "ten", FILES, {}).endswith("ten/v1")


@in_a_folder
def test_a_wrong_name_is_answered_with_the_nearest(store: ArtifactStore, tmp_path: Path) -> None:
    publish_merge(store, "ten-scripts", FILES, {})
    with pytest.raises(NotFoundError, match=r"did you mean 'ten-scripts/v1'\?"):
        read_manifest(store, MergeRef("ten-script", 1))
    manifest = read_manifest(store, MergeRef("ten-scripts", 1))
    with pytest.raises(NotFoundError, match=r"did you mean 'tints/mnist.safetensors'\?"):
        merge_file(store, manifest, "tints/mnits.safetensors", tmp_path)


def test_altered_files_and_manifests_are_named(store: ArtifactStore, tmp_path: Path) -> None:
    publish_merge(store, "ten", FILES, {"tasks": ["mnist"]})
    manifest = read_manifest(store, MergeRef("ten", 1))
    key = blob_key(manifest["files"]["backbone.safetensors"]["sha256"])
    store.put(key, b"backbonE", overwrite=True)
    with pytest.raises(IntegrityError, match=key):
        merge_file(store, manifest, "backbone.safetensors", tmp_path)
    assert merge_file(store, manifest, "tints/mnist.safetensors", tmp_path).exists()
    text = store.get("merges/ten/v1/manifest.json").replace(b"mnist", b"mnisT", 1)
    store.put("merges/ten/v1/manifest.json", text, overwrite=True)
    with pytest.raises(IntegrityError, match=r"merges/ten/v1/manifest\.json"):
        read_manifest(store, MergeRef("ten", 1))


@in_a_folder
def test_a_name_that_is_no_folder_is_refused(store: ArtifactStore) -> None:
    for name in ("", "..", "a/b", "latest", ".hidden", "ü", "x" * 101):
        with pytest.raises(SpecError, match="merge name"):
            publish_merge(store, name, FILES, {})
    assert list(store.list()) == []


@in_a_folder
def test_a_file_that_would_leave_the_merge_is_refused(store: ArtifactStore) -> None:
    for name in ("../x", "/x", "manifest.json", "a/../../x"):
        with pytest.raises(InputError):
            publish_merge(store, "ten", {name: b"x"}, {})
    assert list(store.list()) == []


def test_what_confirming_raises_keeps_a_merge_from_being_published(store: ArtifactStore) -> None:
    def refuse() -> None:
        assert list(store.list("blobs/")) != []
        raise StorageError("the lease is gone")

    with pytest.raises(StorageError, match="the lease is gone"):
        publish_merge(store, "ten", FILES, {}, confirm=refuse)
    assert (list_merges(store), list(store.list("merges/"))) == ([], [])


@in_a_folder
def test_passwords_do_not_reach_a_manifest(store: ArtifactStore) -> None:
    spec = {"catalog": "postgresql+psycopg://me:hunter2@host/db", "store": store.url}
    publish_merge(store, "ten", FILES, {"spec": spec})
    assert b"hunter2" not in store.get("merges/ten/v1/manifest.json")


def test_in_a_folder_the_merge_is_an_ordinary_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "my store")
    publish_merge(store, "ten", FILES, {})
    place = tmp_path / "my store" / "merges" / "ten" / "v1"
    assert (place / "tints" / "mnist.safetensors").read_bytes() == b"tint"
    manifest = json.loads((place / "manifest.json").read_text())
    blob = store.local_path(blob_key(manifest["files"]["backbone.safetensors"]["sha256"]))
    assert (place / "backbone.safetensors").samefile(blob)


@pytest.mark.parametrize("size", [5_000, (1 << 20) + 5_000])
@pytest.mark.parametrize("source", ["bytes", "file", "reference"])
def test_what_a_published_manifest_names_can_be_read_though_the_store_had_it_rotten(
    store: ArtifactStore, tmp_path: Path, size: int, source: str
) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    ref = put_blob(store, data)
    publish_merge(store, "before", {"backbone.safetensors": ref}, {})
    rotten = data[:100] + b"!" + data[101:]
    store.put(blob_key(ref.sha256), rotten, overwrite=True)
    file = tmp_path / "file"
    file.write_bytes(data)
    given: dict[str, bytes | Path | BlobRef] = {"bytes": data, "file": file, "reference": ref}
    files = {"backbone.safetensors": given[source]}
    if source == "reference":  # nobody has the bytes that it should have
        with pytest.raises(IntegrityError, match=r"backbone\.safetensors .* is truncated or alter"):
            publish_merge(store, "after", files, {})
        assert [ref.name for ref in list_merges(store)] == ["before"]
        return
    publish_merge(store, "after", files, {})
    found = merge_file(
        store, read_manifest(store, MergeRef("after", 1)), "backbone.safetensors", tmp_path / "c"
    )
    assert found.read_bytes() == data


def test_a_large_blob_in_a_bucket_is_not_read_again_by_who_wrote_it(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = put_blob(store, bytes(2 << 20))
    read = []
    monkeypatch.setattr(blobs, "hash_stored", lambda *at: read.append(at) or ref)
    publish_merge(store, "ten", {"backbone.safetensors": ref}, {})
    assert len(read) == (1 if isinstance(store, FolderStore) else 0)
