"""A store and a catalog of each kind; the servers behind them are those of ``tests.services``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """An empty store in a folder: the contract of stores holds for each kind."""
    return FolderStore(tmp_path / "store")


@pytest.fixture(params=["folder", "s3"])
def each_store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty store of each kind."""
    s3 = request.param == "s3"
    return open_store(request.getfixturevalue("s3_url") if s3 else tmp_path / "store")


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return f"sqlite:///{tmp_path}/catalog/catalog.db"


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    """An empty catalog of each kind."""
    with Catalog.open(catalog_url) as opened:
        yield opened
