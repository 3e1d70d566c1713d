"""Content-addressed artifacts: a blob's name is the sha256 of its bytes, so it is written once."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from storage.artifacts import ArtifactStore
from tintray.errors import InputError, IntegrityError

_SHA256 = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class BlobRef:
    """A blob's sha256 (64 hex digits) and its size in bytes."""

    sha256: str
    size: int


def blob_key(sha256: str) -> str:
    """The key of a blob: ``blobs/<first two digits>/<sha256>``."""
    if not _SHA256.match(sha256):
        raise InputError(f"artifact {sha256!r}: expected a sha256 of 64 hexadecimal digits")
    return f"blobs/{sha256[:2]}/{sha256}"


def hash_file(path: Path) -> BlobRef:
    """The reference that the bytes of a file would have."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return BlobRef(digest, file.tell())


def hash_bytes(data: bytes | memoryview) -> BlobRef:
    """The reference that these bytes would have."""
    return BlobRef(hashlib.sha256(data).hexdigest(), len(data))


def put_blob(store: ArtifactStore, source: bytes | Path) -> BlobRef:
    """Store bytes or a file under their hash, unless the store has them already."""
    ref = hash_file(source) if isinstance(source, Path) else hash_bytes(source)
    key = blob_key(ref.sha256)
    found = store.size(key)
    if found != ref.size:  # absent, or cut short by a disk that failed: write it (again)
        store.put(key, source, overwrite=found is not None)
    return ref


def get_blob(store: ArtifactStore, ref: BlobRef | str) -> bytes:
    """The bytes of a blob, checked against its hash.

    Raises :class:`~tintray.errors.NotFoundError` if it is not there and :class:`IntegrityError`,
    which names the artifact, if its bytes are not those that its name promises.
    """
    sha256 = _sha256(ref)
    data = store.get(blob_key(sha256))
    _check(sha256, hash_bytes(data), store.url)
    return data


def fetch_blob(store: ArtifactStore, ref: BlobRef | str, cache_dir: Path) -> Path:
    """A local file with the bytes of a blob, checked against its hash; never to be written.

    The store's own file where it has one; else a download kept in ``cache_dir`` under its hash.
    """
    sha256 = _sha256(ref)
    key = blob_key(sha256)
    own = store.local_path(key)
    if own is not None:
        _check(sha256, hash_file(own), store.url)
        return own
    target = cache_dir / key
    if target.is_file() and hash_file(target).sha256 == sha256:
        return target
    found = _download(store, key, target)
    if found.sha256 != sha256:  # altered on the way or in the store? a second one can tell
        found = _download(store, key, target)
    if found.sha256 != sha256:
        target.unlink(missing_ok=True)
    _check(sha256, found, store.url)
    return target


def _download(store: ArtifactStore, key: str, target: Path) -> BlobRef:
    digest = hashlib.sha256()
    store.fetch(key, target, observe=digest.update)
    return BlobRef(digest.hexdigest(), target.stat().st_size)


def _sha256(ref: BlobRef | str) -> str:
    return ref if isinstance(ref, str) else ref.sha256


def _check(sha256: str, found: BlobRef, where: str) -> None:
    if found.sha256 != sha256:
        raise IntegrityError(
            f"artifact {blob_key(sha256)} in {where} is truncated or altered: its {found.size:,} "
            f"bytes have the sha256 {found.sha256}; delete it and run what made it again"
        )
