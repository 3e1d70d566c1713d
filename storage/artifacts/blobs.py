"""Content-addressed artifacts: a blob's name is the sha256 of its bytes, so it is written once.

Whatever is read of a blob is verified by its name.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from tintray.errors import InputError, IntegrityError
from tintray.storage.artifacts.protocol import ArtifactStore, Entry, Pieces

FRESH = 3600.0
"""Seconds for which an artifact counts as just written; far below any age limit of a collection."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 16 << 20
_LARGE = 1 << 20  # bytes from which it is worth a request to know that a blob need not be read


@dataclass(frozen=True)
class BlobRef:
    """A blob's sha256 (64 hex digits) and its size in bytes."""

    sha256: str
    size: int


def blob_key(sha256: str) -> str:
    """The key of a blob: ``blobs/<first two digits>/<sha256>``."""
    return f"blobs/{check_sha256(sha256)[:2]}/{sha256}"


def check_sha256(text: object) -> str:
    """``text`` if it is a sha256; else ``InputError``."""
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise InputError(f"artifact {text!r}: expected a sha256 of 64 hexadecimal digits")
    return text


def is_blob(key: str) -> str | None:
    """The sha256 of the blob that ``key`` names, or None if it names none."""
    sha256 = key.rpartition("/")[2]
    return sha256 if _SHA256.fullmatch(sha256) and key == blob_key(sha256) else None


def hash_file(path: Path) -> BlobRef:
    """The reference that the bytes of a file would have."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return BlobRef(digest, file.tell())


def hash_bytes(data: bytes | memoryview) -> BlobRef:
    """The reference that these bytes would have."""
    return BlobRef(hashlib.sha256(data).hexdigest(), len(data))


def hash_pieces(pieces: Pieces) -> BlobRef:
    """The reference that these bytes would have."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return BlobRef(digest.hexdigest(), pieces.size)


def put_blob(store: ArtifactStore, source: bytes | Path | Pieces) -> BlobRef:
    """Store bytes or a file under their hash, unless the store has them already, and sound."""
    if isinstance(source, Path):
        ref = hash_file(source)
    else:
        ref = hash_bytes(source) if isinstance(source, bytes) else hash_pieces(source)
    key = blob_key(ref.sha256)
    found = store.stat(key)
    if found is not None and is_sound(store, ref, found) and freshen(store, found):
        return ref
    store.put(key, source, overwrite=found is not None)
    if ref.size > _LARGE and (written := store.stat(key)) is not None and written.mark:
        store.proved[ref.sha256] = written.mark
    return ref


def is_sound(store: ArtifactStore, ref: BlobRef, found: Entry) -> bool:
    """Whether the bytes of a blob that the store has, ``found``, are still those of its name.

    They are read and hashed. A large one in a bucket is not where this store object has done so, or
    has written it, and the server's mark of its content is still the same.
    """
    proved = bool(found.mark) and store.proved.get(ref.sha256) == found.mark
    sound = found.size == ref.size and (proved or hash_stored(store, found.key) == ref)
    if sound and found.mark:
        store.proved[ref.sha256] = found.mark
    return sound


def hash_stored(store: ArtifactStore, key: str) -> BlobRef:
    """The reference that the bytes of an artifact in a store would have; bounded memory."""
    if (own := store.local_path(key)) is not None:
        return hash_file(own)
    digest, size = hashlib.sha256(), 0
    while chunk := store.get(key, size, size + _CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return BlobRef(digest.hexdigest(), size)


def freshen(store: ArtifactStore, found: Entry) -> bool:
    """Let the age of an artifact that is used again begin anew; False if it keeps its age.

    Garbage collection spares what is young, as a blob that a job has just found must be.
    """
    return time.time() - found.modified < FRESH or store.touch(found.key)


def get_blob(store: ArtifactStore, ref: BlobRef | str) -> bytes:
    """The bytes of a blob; ``IntegrityError`` if they are not those that its name promises."""
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
    if (own := store.local_path(key)) is not None:
        _check(sha256, hash_file(own), store.url)
        return own
    target = cache_dir / key
    if target.is_file() and hash_file(target).sha256 == sha256:
        return target
    for _ in range(2):  # altered on the way or in the store? a second download can tell
        digest = hashlib.sha256()
        store.fetch(key, target, observe=digest.update)
        found = BlobRef(digest.hexdigest(), target.stat().st_size)
        if found.sha256 == sha256:
            return target
    target.unlink(missing_ok=True)
    _check(sha256, found, store.url)
    return target


def _sha256(ref: BlobRef | str) -> str:
    return ref if isinstance(ref, str) else ref.sha256


def _check(sha256: str, found: BlobRef, where: str) -> None:
    if found.sha256 != sha256:
        raise IntegrityError(
            f"artifact {blob_key(sha256)} in {where} is truncated or altered: its {found.size:,} "
            f"bytes have the sha256 {found.sha256}; delete it and run what made it again"
        )
