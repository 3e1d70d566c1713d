"""Find every artifact whose bytes are not what they were: blobs, records, manifests, merge folders.

Each is read whole. What is found is named, with what it means; nothing is changed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tintray.errors import IntegrityError, NotFoundError
from tintray.storage.artifacts.blobs import BlobRef, blob_key, hash_file, hash_stored
from tintray.storage.artifacts.protocol import ArtifactStore, Entry
from tintray.storage.artifacts.publish import MANIFEST, MergeRef, listed_files
from tintray.storage.artifacts.records import fetch_record
from tintray.storage.artifacts.sweep import is_ours


@dataclass(frozen=True)
class Damage:
    """An artifact that is not what it should be."""

    key: str
    problem: str


@dataclass(frozen=True)
class Verified:
    """What was read, and what of it is damaged."""

    artifacts: int
    size: int
    damaged: tuple[Damage, ...]


def verify_store(
    store: ArtifactStore, expected: Iterable[str] = (), manifests: Mapping[str, str] | None = None
) -> Verified:
    """Read everything in a store, and compare it with its hashes.

    ``expected`` are hashes of blobs that must be there; ``manifests`` maps the keys of manifests to
    the sha256 that the catalog has of them.
    """
    entries = {entry.key: entry for entry in store.list() if is_ours(entry.key)}
    checks = _Checks(store, entries, manifests or {})
    damaged = [damage for key in entries for damage in checks.one(key)]
    missing = {blob_key(sha256) for sha256 in expected} | (manifests or {}).keys()
    damaged += [_gone(key) for key in sorted(missing - entries.keys())]
    size = sum(entry.size for entry in entries.values())
    return Verified(len(entries), size, tuple(dict.fromkeys(damaged)))


def verify_merge(store: ArtifactStore, ref: MergeRef, manifest_sha256: str | None) -> Verified:
    """The same of one merge: its manifest, its files and their blobs."""
    manifest = {ref.manifest_key: manifest_sha256} if manifest_sha256 else {}
    listed = {entry.key: entry for entry in store.list(f"{ref.key}/")}
    if ref.manifest_key not in listed:
        return Verified(0, 0, (_gone(ref.manifest_key),))
    files = _files(store, ref.manifest_key) or {}
    for sha256 in {file.sha256 for file in files.values()}:
        if (found := store.stat(blob_key(sha256))) is not None:
            listed[found.key] = found
    checks = _Checks(store, listed, manifest)
    damaged = [damage for key in listed for damage in checks.one(key)]
    size = sum(entry.size for entry in listed.values())
    return Verified(len(listed), size, tuple(dict.fromkeys(damaged)))


class _Checks:
    """One check for each kind of artifact."""

    def __init__(
        self, store: ArtifactStore, entries: Mapping[str, Entry], manifests: Mapping[str, str]
    ) -> None:
        self._store = store
        self._entries = entries
        self._manifests = manifests

    def one(self, key: str) -> Iterator[Damage]:
        """What is wrong with the artifact ``key``."""
        parts = key.split("/")
        try:
            if parts[0] == "blobs" and len(parts) == 3 and not key.endswith(".blocks"):
                yield from self._blob(key, parts[2])
            elif parts[0] == "blobs" and len(parts) == 3:  # of a store that 0.1.0 has written
                fetch_record(self._store, key)
            elif parts[0] == "cache" and key.endswith(".json"):
                fetch_record(self._store, key)  # one whose blob is gone counts as none
            elif parts[0] == "merges" and len(parts) >= 4:
                yield from self._of_merge(key, "/".join(parts[:3]), "/".join(parts[3:]))
        except IntegrityError as error:
            yield Damage(key, str(error))
        except NotFoundError:  # deleted since it was listed
            return

    def _blob(self, key: str, sha256: str) -> Iterator[Damage]:
        with tempfile.TemporaryDirectory(prefix="tintray-") as folder:
            path = self._store.local_path(key)
            if path is None:
                path = self._store.fetch(key, Path(folder) / "blob")
            ref = hash_file(path)
        if ref.sha256 != sha256:
            yield Damage(key, f"its {ref.size:,} bytes have the sha256 {ref.sha256}")

    def _of_merge(self, key: str, folder: str, name: str) -> Iterator[Damage]:
        if name.startswith("claims/"):
            return
        if name == MANIFEST:
            yield from self._manifest(key)
            return
        files = _files(self._store, f"{folder}/{MANIFEST}")
        if files is None:
            return
        file = files.get(name)
        if file is None:
            yield Damage(key, "the manifest of its merge does not list it")
        elif not self._is_the_blob(key, file.sha256):
            found = hash_stored(self._store, key)
            if found.sha256 != file.sha256:
                yield Damage(key, f"its {found.size:,} bytes have the sha256 {found.sha256}")

    def _manifest(self, key: str) -> Iterator[Damage]:
        document = fetch_record(self._store, key)
        known = self._manifests.get(key)
        if known is not None and hash_stored(self._store, key).sha256 != known:
            yield Damage(key, f"the catalog knows it with the sha256 {known}: it was replaced")
        for file in listed_files(document, key).values():
            if blob_key(file.sha256) not in self._entries:
                yield _gone(blob_key(file.sha256))

    def _is_the_blob(self, key: str, sha256: str) -> bool:
        """Whether a file of a merge's folder is a link to its blob, which is checked anyway."""
        blob = blob_key(sha256)
        path, own = self._store.local_path(key), None
        if blob in self._entries:
            own = self._store.local_path(blob)
        return path is not None and own is not None and path.samefile(own)


def _files(store: ArtifactStore, manifest_key: str) -> dict[str, BlobRef] | None:
    """The files that a manifest lists; None if it cannot be read, which is reported by itself."""
    try:
        return listed_files(fetch_record(store, manifest_key), manifest_key)
    except (IntegrityError, NotFoundError):
        return None


def _gone(key: str) -> Damage:
    return Damage(key, "it is missing")
