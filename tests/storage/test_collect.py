"""Collecting garbage on real stores: what is needed or young is spared, come what may."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tintray.errors import InputError, StorageError
from tintray.storage.artifacts.blobs import blob_key, fetch_blob, get_blob, put_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import (
    list_merges,
    listed_files,
    publish_merge,
    read_manifest,
)
from tintray.storage.artifacts.sweep import Garbage
from tintray.storage.catalog import collect
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState

SOON = -10.0  # an age limit in the future: nothing is too young


@pytest.fixture
def known(tmp_path: Path, store: FolderStore) -> Iterator[Catalog]:
    with opened(tmp_path, store) as catalog:
        yield catalog


@contextmanager
def opened(folder: Path, store: ArtifactStore) -> Iterator[Catalog]:
    """A catalog that knows a store."""
    with Catalog.open(f"sqlite:///{folder}/catalog.db") as catalog:
        catalog.jobs.create("ten", {}, store.url)
        yield catalog


def keys(store: ArtifactStore) -> set[str]:
    return {entry.key for entry in store.list()}


def test_a_dry_run_deletes_nothing_and_a_real_one_what_it_listed(
    store: FolderStore, known: Catalog, tmp_path: Path
) -> None:
    files: dict[str, bytes | Path] = {"backbone": b"backbone", "tint": b"tint"}
    named = {"labels": put_blob(store, b"named").sha256}
    url = publish_merge(store, "ten", files, named, version=1)
    ref = remember(store, "labels", "k", b"not needed")
    big = put_blob(store, b"large")
    store.put(f"{blob_key(big.sha256)}.blocks", b"as 0.1.0 wrote them")
    before = keys(store)
    planned = collect.plan(store, known, SOON)
    assert keys(store) == before
    seen: list[Garbage] = []
    done = collect.collect(store, known, SOON, seen.append)
    assert done.garbage == planned.garbage == tuple(seen)
    gone = {
        "cache/labels/k.json", blob_key(ref.sha256),
        blob_key(big.sha256), f"{blob_key(big.sha256)}.blocks",
    }  # fmt: skip
    assert before - keys(store) == gone == {item.key for item in done.garbage}
    assert url
    manifest = read_manifest(store, list_merges(store)[0])
    for name, content in files.items():
        found = fetch_blob(store, listed_files(manifest, "it")[name], tmp_path / "cache")
        assert found.read_bytes() == content
    assert collect.collect(store, known, SOON).garbage == ()


def test_what_an_unfinished_job_or_a_pin_needs_stays(store: FolderStore, known: Catalog) -> None:
    job = known.jobs.all()[0].id
    used, pinned = put_blob(store, b"used"), put_blob(store, b"pinned")
    known.artifacts.record([KnownArtifact(used, "self-labels")], job_id=job)
    known.artifacts.record([KnownArtifact(pinned, "base")])
    known.artifacts.pin(pinned.sha256)
    assert collect.collect(store, known, SOON).garbage == ()
    known.jobs.transition(job, JobState.QUEUED, JobState.FAILED, "no memory")
    known.artifacts.pin(pinned.sha256, pinned=False)
    assert len(collect.collect(store, known, SOON).garbage) == 2
    assert known.artifacts.all() == []
    assert keys(store) == set()


def test_what_the_job_of_a_merge_was_computed_from_stays_until_the_merge_goes(
    store: FolderStore, known: Catalog
) -> None:
    job = known.jobs.all()[0].id
    vector = put_blob(store, b"vector")
    known.artifacts.record([KnownArtifact(vector, "task-vector")], job_id=job)
    url = publish_merge(store, "ten", {"tint": b"tint"}, {}, version=1)
    files = {"tint": put_blob(store, b"tint")}
    known.merges.record("ten", 1, url, job, files=files)
    known.jobs.transition(job, JobState.QUEUED, JobState.SUCCEEDED, "published")
    assert collect.collect(store, known, SOON).garbage == ()
    for entry in list(store.list("merges/")):
        store.delete(entry.key)
    known.merges.remove("ten", 1)
    assert {item.sha256 for item in collect.collect(store, known, SOON).garbage} == {
        vector.sha256,
        files["tint"].sha256,
    }


def test_what_is_young_or_was_just_found_stays(
    store: FolderStore, known: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = remember(store, "labels", "k", b"labels")
    assert collect.collect(store, known, 3600).garbage == ()
    monkeypatch.setattr("tintray.storage.artifacts.blobs.FRESH", 0.0)
    pause, age = 0.2, 0.1
    time.sleep(pause)
    assert {item.sha256 for item in collect.plan(store, known, age).garbage} == {
        None,
        ref.sha256,
    }
    assert lookup(store, "labels", "k") is not None
    assert collect.collect(store, known, age).garbage == ()
    time.sleep(pause)
    put_blob(store, b"labels")
    assert collect.collect(store, known, age).garbage == ()
    assert get_blob(store, ref.sha256) == b"labels"


def test_what_is_used_between_listing_and_deleting_is_spared(
    store: FolderStore, known: Catalog
) -> None:
    """The first deletion stands for whatever time passes: then a job begins to need the rest."""
    refs = [put_blob(store, bytes([number])) for number in range(3)]
    job = known.jobs.all()[0].id

    def need_all(_: Garbage) -> None:
        known.artifacts.record([KnownArtifact(ref, "task-vector") for ref in refs], job_id=job)

    done = collect.collect(store, known, SOON, need_all)
    assert len(done.garbage) == 1
    left = [ref for ref in refs if store.exists(blob_key(ref.sha256))]
    assert len(left) == 2


def test_broken_off_writes_are_swept(each_store: ArtifactStore, tmp_path: Path) -> None:
    each_store.put("merges/ten/v4/claims/abc", b"")
    if isinstance(each_store, FolderStore):
        (each_store.root / ".tmp" / "half").mkdir()
        (each_store.root / ".tmp" / "half" / "backbone").write_bytes(b"half")
        (each_store.root / ".tmp" / "blob").write_bytes(b"half")
        left = 2
    else:
        begin_upload(each_store)
        left = 1
    with opened(tmp_path, each_store) as known:
        assert collect.collect(each_store, known, 3600).garbage == ()
        done = collect.collect(each_store, known, SOON)
    assert len([item for item in done.garbage if item.leftover]) == left
    assert len(done.garbage) == left + 1
    assert (list(each_store.leftovers()), keys(each_store)) == ([], set())


def begin_upload(store: ArtifactStore) -> None:
    """What a client leaves that is killed while it uploads parts."""
    import boto3

    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    key = f"{prefix}/blobs/large"
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"part")
    client.close()


def test_the_catalog_of_another_store_is_refused(store: FolderStore, tmp_path: Path) -> None:
    put_blob(store, b"precious")
    with Catalog.open(f"sqlite:///{tmp_path}/other.db") as other:
        other.jobs.create("ten", {}, "file:///elsewhere")
        with pytest.raises(InputError, match="knows no job and no merge of the store"):
            collect.collect(store, other, SOON)
    assert len(keys(store)) == 1


def test_the_catalog_forgets_what_was_deleted_before_a_store_failed(
    known: Catalog, store: FolderStore
) -> None:
    refs = [put_blob(store, bytes([number])) for number in range(3)]
    known.artifacts.record([KnownArtifact(ref, "base") for ref in refs])

    def fail(_: Garbage) -> None:
        raise StorageError("the store went away")

    with pytest.raises(StorageError):
        collect.collect(store, known, SOON, fail)
    assert {item.sha256 for item in known.artifacts.all()} == {
        ref.sha256 for ref in refs if store.exists(blob_key(ref.sha256))
    }
    assert len(known.artifacts.all()) == 2
