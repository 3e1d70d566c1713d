"""What was measured of a merge, kept in its store until it is collected, for the reports on it."""

from __future__ import annotations

import hashlib
import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from tintray.errors import StorageError
from tintray.jobs.events import Notice, OnEvent
from tintray.jobs.results import Record
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.blobs import get_blob
from tintray.storage.artifacts.cache import lookup, remember
from tintray.storage.artifacts.protocol import ArtifactStore

R = TypeVar("R", bound=Record)


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


def _key(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest.to_json(), sort_keys=True).encode()).hexdigest()
