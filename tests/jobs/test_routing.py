"""Routing in published merges: what is kept of each task, and how that grows with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tintray
from tests.growing import GrowingStore
from tests.tiny_zoo import TinyZoo
from tintray.errors import IntegrityError, NotFoundError
from tintray.published.files import routing_file


@pytest.fixture(scope="module")
def first(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> GrowingStore:
    """A merge of two tasks, and nothing else; only to be copied."""
    grown = GrowingStore(tiny, tmp_path_factory.mktemp("routed"))
    grown.run("two", "three")
    return grown


@pytest.fixture
def grown(first: GrowingStore, tmp_path: Path) -> GrowingStore:
    return first.copy(tmp_path / "store")


def test_a_task_brings_and_takes_its_statistics_and_no_other_task_is_looked_at(
    grown: GrowingStore,
) -> None:
    before = grown.hashes(grown.summary)
    added = grown.add("five")
    after = grown.hashes(added)
    files = {name for name in after if name.startswith("routing/")}
    assert files == {routing_file(name) for name in ("two", "three", "five")}
    assert all(after[name] == before[name] for name in files & before.keys())
    merge = tintray.load(added.url)
    with np.load(grown.zoo.folder / "five.npz") as data:
        inputs = merge.processor("five")([*data["x_test"]], return_tensors="pt")
    routes = merge.route(inputs)
    assert sum(route.nearest[0][0] == "five" for route in routes) > len(routes) / 2
    removed = grown.hashes(grown.remove("three"))
    assert {name for name in removed if "/three" in name} == set()


def test_what_is_missing_or_damaged_is_said(grown: GrowingStore) -> None:
    merge = tintray.load(grown.summary.url)
    folder = Path(grown.summary.url.removeprefix("file://"))
    file = folder / routing_file("two")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"routing/two.* is damaged"):
        _ = merge.router
    without = tintray.load(grown.run("two", route=False).url)
    with pytest.raises(NotFoundError, match=r"nothing is kept of the pool of two; .*add-router"):
        _ = without.router
