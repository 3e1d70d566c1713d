"""Find every artifact whose bytes are not what they were: blobs, records, manifests, merge folders.

Each is read whole. What is found is named, with what it means; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tintray.errors import IntegrityError, NotFoundError
from tintray.storage.artifacts.blobs import BlobRef, blob_key, hash_stored
from tintray.storage.artifacts.protocol import ArtifactStore, Entry
from tintray.storage.artifacts.publish import MANIFEST, SIGNATURES, MergeRef, listed_files
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
    known, entries = manifests or {}, [entry for entry in store.list() if is_ours(entry.key)]
    return _verify(store, entries, known, {blob_key(sha256) for sha256 in expected} | known.keys())


def verify_merge(store: ArtifactStore, ref: MergeRef, manifest_sha256: str | None) -> Verified:
    """The same of one merge: its manifest, its files and their blobs."""
    listed = list(store.list(f"{ref.key}/"))
    if ref.manifest_key not in {entry.key for entry in listed}:
        return Verified(0, 0, (_gone(ref.manifest_key),))
    files = _files(store, ref.manifest_key) or {}
    blobs = {store.stat(blob_key(sha256)) for sha256 in {file.sha256 for file in files.values()}}
    listed += [found for found in blobs if found is not None]
    return _verify(store, listed, {ref.manifest_key: manifest_sha256} if manifest_sha256 else {})


def _verify(
    store: ArtifactStore,
    entries: Iterable[Entry],
    manifests: Mapping[str, str],
    expected: Iterable[str] = (),
) -> Verified:
    sizes = {entry.key: entry.size for entry in entries}
    checks = _Checks(store, sizes, manifests)
    damaged = [damage for key in sizes for damage in checks.one(key)]
    damaged += [_gone(key) for key in sorted(expected) if key not in sizes]
    return Verified(len(sizes), sum(sizes.values()), tuple(dict.fromkeys(damaged)))


@dataclass(frozen=True)
class _Checks:
    """One check for each kind of artifact."""

    store: ArtifactStore
    there: Mapping[str, int]
    manifests: Mapping[str, str]

    def one(self, key: str) -> Iterator[Damage]:
        """What is wrong with the artifact ``key``."""
        sort, *parts = key.split("/")
        blob = sort == "blobs" and len(parts) == 2
        try:
            if blob and not key.endswith(".blocks"):
                yield from self._bytes(key, parts[1])
            elif blob or (sort == "cache" and key.endswith(".json")):
                # Block hashes of 0.1.0, or a cache record: one whose blob is gone counts as none.
                fetch_record(self.store, key)
            elif sort == "merges" and len(parts) >= 3:
                yield from self._of_merge(key, "/".join((sort, *parts[:2])), "/".join(parts[2:]))
        except IntegrityError as error:
            yield Damage(key, str(error))
        except NotFoundError:  # deleted since it was listed
            return

    def _bytes(self, key: str, sha256: str) -> Iterator[Damage]:
        found = hash_stored(self.store, key)
        if found.sha256 != sha256:
            yield Damage(key, f"its {found.size:,} bytes have the sha256 {found.sha256}")

    def _of_merge(self, key: str, folder: str, name: str) -> Iterator[Damage]:
        if name == MANIFEST:
            yield from self._manifest(key)
            return
        files = _files(self.store, f"{folder}/{MANIFEST}")
        if files is None or name.startswith("claims/") or name == SIGNATURES:
            return
        if name not in files:
            yield Damage(key, "the manifest of its merge does not list it")
        elif not self._is_the_blob(key, blob_key(files[name].sha256)):
            yield from self._bytes(key, files[name].sha256)

    def _manifest(self, key: str) -> Iterator[Damage]:
        document = fetch_record(self.store, key)
        known = self.manifests.get(key)
        if known is not None and hash_stored(self.store, key).sha256 != known:
            yield Damage(key, f"the catalog knows it with the sha256 {known}: it was replaced")
        blobs = [blob_key(file.sha256) for file in listed_files(document, key).values()]
        yield from (_gone(blob) for blob in blobs if blob not in self.there)

    def _is_the_blob(self, key: str, blob: str) -> bool:
        """Whether a file of a merge's folder is a link to its blob, which is checked anyway."""
        path = self.store.local_path(key)
        own = self.store.local_path(blob) if blob in self.there else None
        return path is not None and own is not None and path.samefile(own)


def _files(store: ArtifactStore, manifest_key: str) -> dict[str, BlobRef] | None:
    """The files that a manifest lists; None if it cannot be read, which is reported by itself."""
    try:
        return listed_files(fetch_record(store, manifest_key), manifest_key)
    except (IntegrityError, NotFoundError):
        return None


def _gone(key: str) -> Damage:
    return Damage(key, "it is missing")
