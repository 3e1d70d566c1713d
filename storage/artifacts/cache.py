"""Results remembered by what they were computed from, so that a second job recomputes none."""

from __future__ import annotations

import logging

from tintray.errors import InputError, IntegrityError, NotFoundError
from tintray.storage.artifacts.blobs import BlobRef, blob_key, check_sha256, freshen, put_blob
from tintray.storage.artifacts.protocol import ArtifactStore, Pieces
from tintray.storage.artifacts.records import fetch_record, seal
from tintray.storage.artifacts.urls import check_key

_log = logging.getLogger(__name__)


def lookup(store: ArtifactStore, kind: str, key: str) -> BlobRef | None:
    """The blob of ``kind`` computed from what has the hash ``key``, or None.

    A record that was altered, or whose blob is gone or cut short, counts as none: computing again
    repairs it.
    """
    name = check_key(f"cache/{kind}/{key}.json")
    try:
        record = fetch_record(store, name)
        ref = BlobRef(check_sha256(record.get("sha256")), int(record["size"]))
    except NotFoundError:
        return None
    except (IntegrityError, InputError, LookupError, TypeError, ValueError) as error:
        what = error if isinstance(error, IntegrityError) else f"{name} is none"  # though sealed
        _log.warning("cache record %s; the result is computed again", what)
        return None
    found = store.stat(blob_key(ref.sha256))
    if found is None or found.size != ref.size:
        return None
    freshen(store, found)
    return ref


def remember(store: ArtifactStore, kind: str, key: str, data: bytes | Pieces) -> BlobRef:
    """Keep a result computed from content ``key``: its blob first, then the record of it."""
    ref = put_blob(store, data)
    record = {"sha256": ref.sha256, "size": ref.size, "meta": {}}  # a field that 0.1.0 reads
    name = check_key(f"cache/{kind}/{key}.json")
    store.put(name, seal(record, name), overwrite=True)
    return ref
