"""The store that a URL names: a folder, or a bucket."""

from __future__ import annotations

from pathlib import Path

from tintray.errors import SpecError
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.urls import FolderUrl, parse_store_url


def open_store(url: str | Path) -> ArtifactStore:
    """The store at ``url``, see ``parse_store_url``; nothing is contacted or created yet."""
    place = parse_store_url(url)
    if isinstance(place, FolderUrl):
        from tintray.storage.artifacts.folder import FolderStore

        return FolderStore(place.root)
    from tintray.storage.artifacts.s3 import S3Store

    return S3Store(place)


def canonical_url(url: str) -> str | None:
    """The one form of a store's URL; None of a kind that only another version knows."""
    try:
        return open_store(url).url
    except SpecError:
        return None
