"""Bring what a job file refers to onto this machine: folders and files, local or in a bucket."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tintray.data.source import DataSource
from tintray.errors import NotFoundError
from tintray.storage.artifacts.protocol import ArtifactStore, Entry
from tintray.storage.artifacts.store import open_store


def local_folder(location: str, cache: Path) -> str:
    """A model's folder on this machine, or the location itself where it is a path or hub id.

    A folder in a bucket is copied once below ``cache``, as is a file.
    """
    if not location.startswith("s3://"):
        return location
    store, target = open_store(location), cache / location.removeprefix("s3://")
    entries = [entry for entry in store.list() if "/" not in entry.key]
    for entry in entries:
        _copy(store, entry.key, entry, target / entry.key)
    if not entries:
        raise NotFoundError(f"{location} holds no files; expected a model folder")
    return str(target)


def local_file(location: str, cache: Path) -> Path:
    """A data file on this machine; one in a bucket is copied once below ``cache``."""
    if not location.startswith("s3://"):
        return Path(location.removeprefix("file://"))
    parent, _, name = location.rpartition("/")
    store = open_store(parent)
    return _copy(store, name, store.stat(name), cache / location.removeprefix("s3://"))


def _copy(store: ArtifactStore, key: str, found: Entry | None, path: Path) -> Path:
    """Fetch a file, unless one of its size is there."""
    if found is None or not path.is_file() or path.stat().st_size != found.size:
        store.fetch(key, path)
    return path


def local_data(source: DataSource, cache: Path) -> DataSource:
    """The same source, on this machine; a data set on the hub stays where it is."""
    if source.path.startswith("hf://"):
        return source
    return replace(source, path=str(local_file(source.path, cache)))


def cache_folder() -> Path:
    """Where copies of remote artifacts are kept on this machine: ``~/.cache/tintray``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tintray"
