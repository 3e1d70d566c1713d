"""Sealed JSON documents: a manifest or a cache record that carries the hash of its own content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tintray import seals
from tintray.errors import IntegrityError
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.secrets import scrub

MAX_RECORD = 256 * 2**20
"""Bytes of a record that are read."""


def seal(document: Mapping[str, Any], name: str) -> bytes:
    """A document's sealed JSON text (see :mod:`tintray.seals`), passwords in URLs removed."""
    return seals.seal(document, name, scrub)


def fetch_record(store: ArtifactStore, key: str) -> dict[str, Any]:
    """A sealed document of a store; ``IntegrityError`` if it was changed, or is too large."""
    name = f"{key} in {store.url}"
    data = store.get(key, 0, MAX_RECORD + 1)
    if len(data) > MAX_RECORD:
        raise IntegrityError(f"{name} has more than {MAX_RECORD:,} bytes, which no record needs")
    return seals.unseal(data, name)
