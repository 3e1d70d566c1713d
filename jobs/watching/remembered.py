"""What was measured of a merge, kept in its store until it is collected, for the reports on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tintray.checkpoints.tensors import read_tensors, tensors_as_bytes
from tintray.errors import StorageError
from tintray.jobs.engine.sources import cache_folder
from tintray.jobs.events import Notice, OnEvent
from tintray.jobs.records import Record
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.blobs import fetch_blob, get_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.protocol import ArtifactStore

R = TypeVar("R", bound=Record)

_MEASURED = "references"


def recall(store: ArtifactStore, manifest: Manifest, kind: type[R]) -> R | None:
    """What was kept of a merge, of this class; None where it was never measured, or is gone."""
    found = lookup(store, kind.__name__.lower(), _key(manifest))
    if found is None:
        return None
    try:
        return TypeAdapter(kind).validate_json(get_blob(store, found))
    except ValidationError:  # of another version
        return None


def keep(store: ArtifactStore, manifest: Manifest, found: Record, on_event: OnEvent) -> None:
    """Keep what was measured of a merge; a store that cannot be written is told of, no more."""
    try:
        data = json.dumps(found.to_json(), sort_keys=True).encode()
        remember(store, type(found).__name__.lower(), _key(manifest), data)
    except StorageError as error:
        on_event(Notice(f"what was measured is not kept for reports: {error}"))


def recall_tensors(store: ArtifactStore, manifest: Manifest, name: str) -> dict[str, Tensor] | None:
    """What ``keep_tensors`` kept of a merge; None where it did not, or where it is gone."""
    found = lookup(store, _MEASURED, _key(manifest, name))
    return None if found is None else read_tensors(fetch_blob(store, found, cache_folder()))


def keep_tensors(
    store: ArtifactStore,
    manifest: Manifest,
    name: str,
    tensors: Mapping[str, Tensor],
    on_event: OnEvent,
) -> None:
    """Keep what was measured of a merge, as ``keep`` does."""
    try:
        remember(store, _MEASURED, _key(manifest, name), tensors_as_bytes(tensors))
    except StorageError as error:
        on_event(Notice(f"what was measured is not kept for another time: {error}"))


def _key(manifest: Manifest, name: str = "") -> str:
    document = json.dumps(manifest.to_json(), sort_keys=True) + name
    return hashlib.sha256(document.encode()).hexdigest()
