"""Published merges: blobs first, manifest last, versions that are never given twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintray.errors import InputError, IntegrityError, NotFoundError, StorageError, nearest
from tintray.storage.artifacts.blobs import (
    BlobRef,
    blob_key,
    check_sha256,
    freshen,
    hash_bytes,
    hash_stored,
    is_sound,
    put_blob,
)
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.artifacts.protocol import ArtifactStore, Pieces
from tintray.storage.artifacts.records import fetch_record, seal
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.urls import check_key, check_name

MANIFEST = "manifest.json"
SIGNATURES = "signatures.json"
"""Lies beside the manifest where somebody has signed it, and may change as others sign too."""
_THREADS = 4
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


@dataclass(frozen=True, order=True)
class MergeRef:
    """A published merge: its name and version number (``name/v3``)."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/v{self.version}"

    @property
    def key(self) -> str:
        """The merge's folder in its store."""
        return f"merges/{self}"

    @property
    def manifest_key(self) -> str:
        """The key whose existence makes the merge visible."""
        return f"{self.key}/{MANIFEST}"

    @property
    def signatures_key(self) -> str:
        """Where signatures of the manifest lie."""
        return f"{self.key}/{SIGNATURES}"


def publish_merge(
    store: ArtifactStore,
    name: str,
    files: Mapping[str, bytes | Path | Pieces | BlobRef],
    manifest: Mapping[str, Any],
    *,
    version: int,
    confirm: Callable[[], object] | None = None,
) -> str:
    """Publish files and a manifest as the immutable merge ``name``; returns its URL.

    Every file becomes a blob, or is one that the store has already and that is hashed there again:
    what a manifest names can be read. The manifest, to which ``name``, ``version`` and ``files:
    {relative name: {sha256, size}}`` are added, is written last. In a folder store the merge is
    moreover an ordinary folder with all its files.

    ``version`` is one that ``catalog.merges.reserve`` has given: not every S3 server keeps its
    promise of a conditional put. ``confirm`` is called when only the manifest is missing: what it
    raises keeps the merge from being published. Publishing the same files again under the same
    version changes nothing but what has been damaged since; other files under it raise
    ``StorageError``.
    """
    check_name(name, "merge name")
    if MANIFEST in {check_key(relative) for relative in files}:
        raise InputError(f"merge {name}: {MANIFEST} is written by publishing, not given to it")
    with ThreadPoolExecutor(_THREADS) as pool:
        refs = pool.map(lambda item: _put(store, *item), files.items())
        blobs = dict(zip(files, refs, strict=True))
    listed = {key: {"sha256": ref.sha256, "size": ref.size} for key, ref in sorted(blobs.items())}
    if confirm is not None:
        confirm()
    ref = MergeRef(name, version)
    document = {**manifest, "name": name, "version": version, "files": listed}
    if not _show(store, ref, seal(document, f"the manifest of {ref}"), blobs):
        if read_manifest(store, ref)["files"] != listed:
            raise StorageError(
                f"merge {ref} is already published in {store.url} with other files: a published "
                "merge never changes; publish under another version or name"
            )
        if isinstance(store, FolderStore):
            _mend(store, ref, blobs)
    return f"{store.url}/{ref.key}"


def _put(store: ArtifactStore, name: str, source: bytes | Path | Pieces | BlobRef) -> BlobRef:
    if not isinstance(source, BlobRef):
        return put_blob(store, source)
    key = blob_key(source.sha256)
    found = store.stat(key)
    if found is None:
        raise NotFoundError(
            f"{name} (artifact {source.sha256[:12]}…) is gone from {store.url}; expected a file of "
            "an earlier merge, copy it back"
        )
    if not is_sound(store, source, found):
        raise IntegrityError(
            f"{name} (artifact {key}) in {store.url} is truncated or altered, and this merge would "
            "have it too; copy it back, or delete it and run what made it again"
        )
    freshen(store, found)
    return source


def _show(store: ArtifactStore, ref: MergeRef, text: bytes, blobs: Mapping[str, BlobRef]) -> bool:
    """Make the merge visible; False if its version is taken."""
    if isinstance(store, FolderStore):
        # The folder is renamed into place whole: the name itself is the lock.
        linked = {key: store.local_path(blob_key(blob.sha256)) for key, blob in blobs.items()}
        return store.add_folder(ref.key, {**linked, MANIFEST: text})
    return store.put(ref.manifest_key, text)


def _mend(store: FolderStore, ref: MergeRef, blobs: Mapping[str, BlobRef]) -> None:
    """Put right what has changed in the folder of a merge whose blobs are sound."""
    for name, blob in blobs.items():
        key, source = f"{ref.key}/{name}", store.local_path(blob_key(blob.sha256))
        same = store.exists(key) and store.local_path(key).samefile(source)
        if not same and not (store.exists(key) and hash_stored(store, key) == blob):
            store.put(key, source, overwrite=True)


def next_version(store: ArtifactStore, name: str) -> int:
    """The lowest version above all that exist under ``name``."""
    found = store.list(f"merges/{check_name(name, 'merge name')}/")
    return 1 + max((_version(entry.key.split("/")[2]) for entry in found), default=0)


def _version(text: str) -> int:
    found = _VERSION.fullmatch(text)
    return int(found.group(1)) if found else 0


def list_merges(store: ArtifactStore, name: str | None = None) -> list[MergeRef]:
    """All published merges of a store, or of a name, by version; half-written ones are none."""
    below = "merges/" if name is None else f"merges/{check_name(name, 'merge name')}/"
    keys = [entry.key.split("/") for entry in store.list(below)]
    found = [(key[1], _version(key[2])) for key in keys if key[3:] == [MANIFEST]]
    return sorted(MergeRef(name, version) for name, version in found if version)


def read_manifest(store: ArtifactStore, ref: MergeRef) -> dict[str, Any]:
    """The manifest of a merge, checked against its seal; ``NotFoundError`` names the nearest."""
    try:
        document = fetch_record(store, ref.manifest_key)
    except NotFoundError:
        hint = nearest(str(ref), map(str, list_merges(store)))
        raise NotFoundError(f"merge {ref} is not published in {store.url}{hint}") from None
    listed_files(document, f"{ref.manifest_key} in {store.url}")
    return document


def listed_files(document: Mapping[str, Any], name: str) -> dict[str, BlobRef]:
    """The files that a manifest lists, by their names; ``IntegrityError`` if it lists none."""
    try:
        return {
            check_key(key): BlobRef(check_sha256(ref["sha256"]), _size(ref["size"]))
            for key, ref in document["files"].items()
        }
    except (LookupError, TypeError, ValueError, AttributeError, InputError) as error:
        raise IntegrityError(
            f"{name} does not say which files the merge has ({error}); it was not written by "
            "tintray, remove it"
        ) from error


def _size(found: object) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise ValueError(f"a size of {found!r}")
    return found


def manifest_digest(store: ArtifactStore, ref: MergeRef) -> str:
    """The sha256 of the manifest's file as it lies in the store."""
    return hash_bytes(store.get(ref.manifest_key)).sha256


def parse_merge_url(url: str | Path) -> tuple[ArtifactStore, MergeRef]:
    """The store and the merge that a URL such as ``<store url>/merges/<name>/v3`` names."""
    base, _, tail = str(url).rstrip("/").rpartition("/merges/")
    name, _, version = tail.partition("/")
    if not base or not name or not _version(version):
        expected = "the URL of a published merge, <store>/merges/<name>/v<number>"
        raise InputError(f"merge {str(url)!r}: expected {expected}")
    return open_store(base), MergeRef(name, _version(version))
