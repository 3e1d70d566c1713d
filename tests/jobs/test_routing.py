"""Routing in published merges: what is kept of each task, and how that grows with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tintray
from tests.answers import call
from tests.growing import GrowingStore
from tests.tiny_zoo import TEST, TinyZoo
from tintray.errors import IntegrityError, NotFoundError
from tintray.jobs import api
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
    without = tintray.load(grown.run("two", "five", route=False).url)
    with pytest.raises(NotFoundError, match=r"kept of the pool of two, five; .*add-router"):
        _ = without.router
    with pytest.raises(NotFoundError, match="add-router"):
        api.evaluate(without.url, route=True, **grown.place)


def test_a_merge_without_a_router_is_given_one_and_measured(
    grown: GrowingStore, tiny: TinyZoo
) -> None:
    without = grown.run("two", "five", route=False)
    given = call("add-router", "tiny", *grown.words)
    assert given.code == 0, given.err
    child = tintray.load("tiny", **grown.place)
    changed = grown.hashes(child.summary()).items() - grown.hashes(without).items()
    assert {name for name, _ in changed} == {routing_file("two"), routing_file("five")}
    assert child.manifest.parent == f"tiny/{without.version}"
    data = f"{tiny.folder}/three.npz#test"
    told = call("eval", "tiny", "--route", "--foreign", data, "--json", *grown.words)
    assert told.code == 0, told.err
    routing = json.loads(told.out)["routing"]
    for task, figures in zip(routing["tasks"], json.loads(told.out)["tasks"], strict=True):
        assert task["given"] == figures["merged"] >= task["found"] > 0
        assert sum(task["to"].values()) == pytest.approx(1)
        assert task["to"][task["name"]] > 0.5
    (foreign,) = routing["foreign"]
    assert foreign["examples"] == TEST and foreign["auroc"] > 0.5
    table = call("eval", "tiny", "--route", "--foreign", data, *grown.words)
    assert table.code == 0 and "task found" in table.out and "AUROC" in table.out
    gone = call("eval", "tiny", "--foreign", f"{tiny.folder}/three.npz#tset", *grown.words)
    assert gone.code == 2 and "--foreign" in gone.err and "x_tset" in gone.err
