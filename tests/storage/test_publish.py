"""Publishing: visible only when whole, never changed, versions given once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tintray.errors import InputError, IntegrityError, NotFoundError, SpecError, StorageError
from tintray.storage.artifacts import blobs
from tintray.storage.artifacts.blobs import blob_key, fetch_blob, put_blob
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import (
    MergeRef,
    list_merges,
    listed_files,
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
FIRST = MergeRef("ten", 1)
MANIFEST = FIRST.manifest_key


def test_a_published_merge_is_listed_and_read_back(
    each_store: ArtifactStore, tmp_path: Path
) -> None:
    url = publish_merge(each_store, "ten", FILES, {"tasks": ["mnist"]}, version=1)
    assert url == f"{each_store.url}/merges/ten/v1"
    assert list_merges(each_store) == [FIRST]
    store, ref = parse_merge_url(url)
    assert (store.url, ref) == (each_store.url, FIRST)
    manifest = read_manifest(store, ref)
    assert (manifest["tasks"], manifest["name"], manifest["version"]) == (["mnist"], "ten", 1)
    assert sorted(manifest["files"]) == sorted(FILES)
    for name, content in FILES.items():
        found = fetch_blob(store, listed_files(manifest, "it")[name], tmp_path / "cache")
        assert found.read_bytes() == content


def test_versions_go_up_and_names_are_apart(store: FolderStore) -> None:
    for name in ("b", "a", "b", "b-2", "b"):
        publish_merge(store, name, FILES, {}, version=next_version(store, name))
    assert [str(ref) for ref in list_merges(store)] == ["a/v1", "b/v1", "b/v2", "b/v3", "b-2/v1"]
    assert (next_version(store, "b"), next_version(store, "new")) == (4, 1)


def test_a_published_version_never_changes(each_store: ArtifactStore) -> None:
    first = publish_merge(each_store, "ten", FILES, {"seconds": 1}, version=1)
    before = each_store.get(MANIFEST)
    assert publish_merge(each_store, "ten", FILES, {"seconds": 2}, version=1) == first
    with pytest.raises(StorageError, match=r"ten/v1 is already published .* with other files"):
        publish_merge(each_store, "ten", {"backbone.safetensors": b"other"}, {}, version=1)
    assert each_store.get(MANIFEST) == before


def test_nothing_is_visible_before_the_manifest(each_store: ArtifactStore) -> None:
    def refuse() -> None:
        assert list(each_store.list("blobs/")) != []
        raise StorageError("the lease is gone")

    with pytest.raises(StorageError, match="the lease is gone"):
        publish_merge(each_store, "ten", FILES, {}, confirm=refuse, version=1)
    with pytest.raises(StorageError, match="manifest of ten/v1"):
        publish_merge(each_store, "ten", FILES, {"loss": float("nan")}, version=1)
    assert (list_merges(each_store), list(each_store.list("merges/"))) == ([], [])
    with pytest.raises(NotFoundError):
        read_manifest(each_store, FIRST)
    assert publish_merge(each_store, "ten", FILES, {}, version=1).endswith("ten/v1")


def test_a_wrong_name_is_answered_with_the_nearest_and_an_altered_manifest_is_named(
    store: FolderStore,
) -> None:
    publish_merge(store, "ten", FILES, {"tasks": ["mnist"]}, version=1)
    with pytest.raises(NotFoundError, match=r"did you mean 'ten/v1'\?"):
        read_manifest(store, MergeRef("tenn", 1))
    store.put(MANIFEST, store.get(MANIFEST).replace(b"mnist", b"mnisT", 1), overwrite=True)
    with pytest.raises(IntegrityError, match=r"merges/ten/v1/manifest\.json"):
        read_manifest(store, FIRST)


def test_names_that_are_no_folder_or_leave_the_merge_are_refused(store: FolderStore) -> None:
    for wrong in ("", "ten/v1", "/store/merges/ten", "/store/merges/ten/v0"):
        with pytest.raises(InputError, match="expected the URL of a published merge"):
            parse_merge_url(wrong)
    for name in ("", "..", "a/b", "latest", ".hidden", "ü", "x" * 101):
        with pytest.raises(SpecError, match="merge name"):
            publish_merge(store, name, FILES, {}, version=1)
    for name in ("../x", "/x", "manifest.json", "a/../../x"):
        with pytest.raises(InputError):
            publish_merge(store, "ten", {name: b"x"}, {}, version=1)
    assert list(store.list()) == []


def test_in_a_folder_the_merge_is_an_ordinary_folder_that_appears_whole_and_once(
    tmp_path: Path,
) -> None:
    store = FolderStore(tmp_path / "my store")
    publish_merge(store, "ten", FILES, {}, version=1)
    assert not store.add_folder("merges/ten/v1", {"manifest.json": b"other"})
    place = tmp_path / "my store" / "merges" / "ten" / "v1"
    assert (place / "tints" / "mnist.safetensors").read_bytes() == b"tint"
    manifest = json.loads((place / "manifest.json").read_text())
    blob = store.local_path(blob_key(manifest["files"]["backbone.safetensors"]["sha256"]))
    assert (place / "backbone.safetensors").samefile(blob)


@pytest.mark.parametrize("size", [5_000, (1 << 20) + 5_000])
def test_what_a_published_manifest_names_can_be_read_though_the_store_had_it_rotten(
    store: FolderStore, tmp_path: Path, size: int
) -> None:
    data, file = (bytes(range(256)) * (size // 256 + 1))[:size], tmp_path / "file"
    file.write_bytes(data)
    ref = put_blob(store, data)
    publish_merge(store, "before", {"backbone.safetensors": ref}, {}, version=1)
    for number, source in enumerate((ref, data, file)):
        store.put(blob_key(ref.sha256), data[:100] + b"!" + data[101:], overwrite=True)
        if source is ref:  # nobody has the bytes that it should have
            with pytest.raises(
                IntegrityError, match=r"backbone\.safetensors .* is truncated or al"
            ):
                publish_merge(store, "after", {"backbone.safetensors": source}, {}, version=1)
            assert [ref.name for ref in list_merges(store)] == ["before"]
            continue
        publish_merge(store, "after", {"backbone.safetensors": source}, {}, version=number)
        found = listed_files(read_manifest(store, MergeRef("after", number)), "it").values()
        assert [fetch_blob(store, ref, tmp_path).read_bytes() for ref in found] == [data]


def test_a_large_blob_in_a_bucket_is_not_read_again_by_who_wrote_it(
    each_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = put_blob(each_store, bytes(2 << 20))
    read = []
    monkeypatch.setattr(blobs, "hash_stored", lambda *at: read.append(at) or ref)
    publish_merge(each_store, "ten", {"backbone.safetensors": ref}, {}, version=1)
    assert len(read) == (1 if isinstance(each_store, FolderStore) else 0)
