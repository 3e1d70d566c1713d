"""Stores and catalogs for the tests: a folder and SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.artifacts import ArtifactStore, open_store
from storage.catalog import Catalog


@pytest.fixture(params=["folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty store of each kind."""
    return open_store(tmp_path / "store")


@pytest.fixture(params=["sqlite"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    return f"sqlite:///{tmp_path}/catalog/catalog.db"


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    """An empty catalog of each kind."""
    with Catalog.open(catalog_url) as opened:
        yield opened
