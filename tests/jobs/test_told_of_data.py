"""What plan, validate and run tell of a job's data: its memory, and what pools and tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tintray
from tests.tiny_zoo import POOL, TinyZoo
from tintray.errors import DataError, SpecError

TASKS = ("two", "three")
WORDS = "tasks.three.test: 9 of 12 examples are in the pool too"


@pytest.fixture
def spec(tiny: TinyZoo, tmp_path: Path) -> tintray.JobSpec:
    """A job in which a test set in a file of its own has nine examples of the pool."""
    zoo = tiny.copy(tmp_path / "zoo")
    all_ = zoo.arrays("three")
    both = {k: np.concatenate([all_[f"{k}_test"][:3], all_[f"{k}_train"][20:11:-1]]) for k in "xy"}
    np.savez(zoo.folder / "other.npz", x_some=both["x"], y_some=both["y"])
    job = zoo.job(tmp_path / "store", TASKS)
    job["tasks"][1]["test"] = {"path": "other.npz", "split": "some"}
    return tintray.parse_spec(job, folder=zoo.folder)


def test_shared_examples_and_memory_are_told(
    spec: tintray.JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for notices in (tintray.validate(spec).notices, tintray.run(spec).summary().notices):
        assert [WORDS in notice for notice in notices] == [True]
    taken = {
        **{f"tasks.{name}.pool": POOL * 3 * 16 * 16 for name in TASKS},
        "tasks.two.test": 48 * 3 * 16 * 16,
        "tasks.three.test": 12 * 3 * 16 * 16,
    }
    for report in (tintray.validate(spec), tintray.plan(spec, seconds=0.1)):
        assert (report.pools, report.max_pool_bytes) == (taken, 4 << 30)
        assert report.max_seconds == report.to_json()["max_seconds"] == 60
    monkeypatch.setenv("TINTRAY_MAX_POOL_BYTES", "20KiB")
    for call in (tintray.validate, tintray.plan, tintray.run):
        with pytest.raises(DataError, match=r"max_pool_bytes allows 20 KiB; take fewer"):
            call(spec)


@pytest.mark.parametrize("count", [1, 2])
def test_a_pool_of_one_example_is_enough(tiny: TinyZoo, tmp_path: Path, count: int) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    arrays = zoo.arrays("three")
    pool = {name: arrays[name][:count] for name in ("x_train", "y_train")}
    zoo.replace_arrays("three", **pool)
    spec = zoo.spec(tmp_path / "store", TASKS)
    assert tintray.validate(spec).tasks == list(TASKS)
    assert tintray.run(spec).tasks == TASKS


def test_a_distance_that_compares_nothing_is_refused(tiny: TinyZoo, tmp_path: Path) -> None:
    job = tiny.job(tmp_path, TASKS, objective={"distance": "l2"})
    job["tasks"][0]["kind"] = "normals"
    words = "distance: expected a task of kind regression or depth, .* found classification, norm"
    with pytest.raises(SpecError, match=words):
        tintray.parse_spec(job, folder=tiny.folder)
    job["tasks"][1]["kind"] = "depth"
    assert tintray.parse_spec(job, folder=tiny.folder).objective.distance == "l2"
