"""Content-addressed artifacts: a blob's name is the sha256 of its bytes, so it is written once.

Whatever is read of a blob is verified: the whole by its name, a part by the hashes of its blocks.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tintray.errors import InputError, IntegrityError, NotFoundError
from tintray.storage.artifacts.records import fetch_record, seal
from tintray.storage.artifacts.store import ArtifactStore, Entry

BLOCK = 1 << 20
"""The unit in which parts of a blob are verified, in bytes."""

FRESH = 3600.0
"""Seconds for which an artifact counts as just written; far below any age limit of a collection."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 16 << 20


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


def put_blob(store: ArtifactStore, source: bytes | Path) -> BlobRef:
    """Store bytes or a file under their hash, unless the store has them already.

    What the store has is read and hashed: a blob whose bytes have changed is written again.

    A blob of more than one block gets a record of the hashes of its blocks: a part of it can then
    be read and verified without the rest (:func:`read_blob`).
    """
    ref = hash_file(source) if isinstance(source, Path) else hash_bytes(source)
    key, record = blob_key(ref.sha256), blocks_key(ref.sha256)
    found = store.stat(key)
    whole = found is not None and is_sound(store, ref, found) and has_record(store, ref)
    if found is not None and whole and freshen(store, found):
        return ref
    with ThreadPoolExecutor(1) as other:  # an upload mostly waits
        blocks = other.submit(hash_blocks, source) if ref.size > BLOCK else None
        store.put(key, source, overwrite=found is not None)
        if blocks is not None:
            text = {"block_bytes": BLOCK, "size": ref.size, "blocks": blocks.result()}
            store.put(record, seal(text, record), overwrite=True)
            _remember(store, ref.sha256)
    return ref


def is_sound(store: ArtifactStore, ref: BlobRef, found: Entry) -> bool:
    """Whether the bytes of a blob that the store has, ``found``, are still those of its name.

    They are read and hashed. A large one in a bucket is not where this store object has done so, or
    has written it, and the server's mark of its content is still the same.
    """
    if found.size != ref.size:
        return False
    if found.mark and store.proved.get(ref.sha256) == found.mark:
        return True
    if hash_stored(store, found.key) != ref:
        return False
    if found.mark:
        store.proved[ref.sha256] = found.mark
    return True


def hash_stored(store: ArtifactStore, key: str) -> BlobRef:
    """The reference that the bytes of an artifact in a store would have; bounded memory."""
    own = store.local_path(key)
    if own is not None:
        return hash_file(own)
    digest, size = hashlib.sha256(), 0
    while chunk := store.get(key, size, size + _CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return BlobRef(digest.hexdigest(), size)


def has_record(store: ArtifactStore, ref: BlobRef) -> bool:
    """Whether a blob has the record of its blocks that it needs, and it can be read."""
    try:
        return ref.size <= BLOCK or len(_blocks(store, ref)) == -(-ref.size // BLOCK)
    except (NotFoundError, IntegrityError):
        return False


def _remember(store: ArtifactStore, sha256: str) -> None:
    """Note the mark of a blob whose bytes have just been hashed on their way."""
    found = store.stat(blob_key(sha256))
    if found is not None and found.mark:
        store.proved[sha256] = found.mark


def freshen(store: ArtifactStore, found: Entry) -> bool:
    """Let the age of an artifact that is used again begin anew; False if it keeps its age.

    Garbage collection spares what is young: a blob that a job has just found in the store must be,
    even if nobody needed it for a year. One that was written within :data:`FRESH` is left alone.
    """
    return time.time() - found.modified < FRESH or store.touch(found.key)


def hash_blocks(source: bytes | Path) -> list[str]:
    """The sha256 of each block of :data:`BLOCK` bytes."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        return [hashlib.sha256(block).hexdigest() for block in iter(lambda: file.read(BLOCK), b"")]


def read_blob(store: ArtifactStore, ref: BlobRef, start: int, stop: int) -> bytes:
    """Bytes ``start:stop`` of a blob, checked against the hashes of the blocks that they lie in.

    Reads those blocks of :data:`BLOCK` bytes and nothing else of the blob; all of it only if the
    record of its blocks is missing.
    """
    stop = min(stop, ref.size)
    if start >= stop:
        return b""
    if ref.size <= BLOCK:
        return get_blob(store, ref)[start:stop]
    try:
        blocks = _blocks(store, ref)
    except NotFoundError:
        return get_blob(store, ref)[start:stop]
    first, last = start // BLOCK, (stop - 1) // BLOCK
    data = store.get(blob_key(ref.sha256), first * BLOCK, (last + 1) * BLOCK)
    for number, expected in enumerate(blocks[first : last + 1]):
        block = memoryview(data)[number * BLOCK : (number + 1) * BLOCK]
        if hashlib.sha256(block).hexdigest() != expected:
            raise IntegrityError(
                f"artifact {blob_key(ref.sha256)} in {store.url} is truncated or altered between "
                f"bytes {(first + number) * BLOCK:,} and {(first + number + 1) * BLOCK:,}; "
                "delete it and run what made it again"
            )
    return data[start - first * BLOCK : stop - first * BLOCK]


def _blocks(store: ArtifactStore, ref: BlobRef) -> list[str]:
    key = blocks_key(ref.sha256)
    record = fetch_record(store, key)
    blocks = record.get("blocks")
    if not isinstance(blocks, list) or not all(isinstance(block, str) for block in blocks):
        raise IntegrityError(
            f"{key} in {store.url} has no list of hashes; delete it and run what made it again"
        )
    return blocks


def blocks_key(sha256: str) -> str:
    """The key of the record of a blob's blocks."""
    return f"{blob_key(sha256)}.blocks"


def delete_blob(store: ArtifactStore, sha256: str) -> None:
    """Delete a blob that nobody needs, and the record of its blocks after it."""
    store.delete(blob_key(sha256))
    store.delete(blocks_key(sha256))


def get_blob(store: ArtifactStore, ref: BlobRef | str) -> bytes:
    """The bytes of a blob, checked against its hash.

    Raises ``NotFoundError`` if it is not there and ``IntegrityError``,
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
