"""What plan, validate and run tell of a job's data: its memory, and what pools and tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tintray
from tests.tiny_zoo import POOL, TinyZoo
from tintray.errors import DataError

TASKS = ("two", "three")
WORDS = "tasks.three.test: 9 of 12 examples are in the pool too"


@pytest.fixture
def spec(tiny: TinyZoo, tmp_path: Path) -> tintray.JobSpec:
    """A job in which a test set in a file of its own has nine examples of the pool."""
    zoo = tiny.copy(tmp_path / "zoo")
    found = zoo.arrays("three")
    x = np.concatenate([found["x_test"][:3], found["x_train"][20:11:-1]])
    y = np.concatenate([found["y_test"][:3], found["y_train"][20:11:-1]])
    np.savez(zoo.folder / "other.npz", x_some=x, y_some=y)
    job = zoo.job(tmp_path / "store", TASKS)
    job["tasks"][1]["test"] = {"path": "other.npz", "split": "some"}
    return tintray.parse_spec(job, folder=zoo.folder)


def test_shared_examples_are_told_and_published(spec: tintray.JobSpec) -> None:
    assert [WORDS in notice for notice in tintray.validate(spec).notices] == [True]
    summary = tintray.run(spec).summary()
    assert [WORDS in notice for notice in summary.notices] == [True]


def test_memory_is_told_beside_its_budget(
    spec: tintray.JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {
        **{f"tasks.{name}.pool": POOL * 3 * 16 * 16 for name in TASKS},
        "tasks.two.test": 48 * 3 * 16 * 16,
        "tasks.three.test": 12 * 3 * 16 * 16,
    }
    for report in (tintray.validate(spec), tintray.plan(spec, seconds=0.1)):
        assert report.pools == taken
        assert report.max_pool_bytes == 4 << 30
        assert report.max_seconds == 60
        assert report.to_json()["max_seconds"] == 60
    monkeypatch.setenv("TINTRAY_MAX_POOL_BYTES", "20KiB")
    for call in (tintray.validate, tintray.plan, tintray.run):
        with pytest.raises(DataError, match=r"max_pool_bytes allows 20 KiB; take fewer"):
            call(spec)


@pytest.mark.parametrize("examples", [[0], [0, 1], "one class"])
def test_a_pool_of_one_example_or_of_one_class_is_enough(
    tiny: TinyZoo, tmp_path: Path, examples: list[int] | str
) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    found = zoo.arrays("three")
    rows = np.flatnonzero(found["y_train"] == 1) if examples == "one class" else np.array(examples)
    zoo.replace_arrays("three", x_train=found["x_train"][rows], y_train=found["y_train"][rows])
    spec = zoo.spec(tmp_path / "store", TASKS)
    assert tintray.validate(spec).tasks == list(TASKS)
    assert tintray.run(spec).tasks == tuple(TASKS)
