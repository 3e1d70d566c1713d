"""Measuring a merge on data that was not in its job, and under corruptions."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.answers import call
from tests.conftest import Published
from tests.tiny_zoo import TASKS, TEST, TinyZoo, more


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """New examples of a task, with labels."""
    path = tmp_path_factory.mktemp("new") / "five.npz"
    np.savez(path, **more("five", 30, seed=2))
    return path


def words(published: Published) -> list[str]:
    return ["--store", str(published.spec.store), "--catalog", str(published.spec.catalog)]


def test_other_data_are_measured_with_and_without_labels(published: Published, new: Path) -> None:
    ask = ("eval", "tiny", "--task", "five", "--data", f"{new}#test", *words(published), "--json")
    (row,) = call(*ask, "--labels").document["rows"]
    assert (row["task"], row["metric"], row["examples"]) == ("five", "accuracy", 30)
    assert row["expert"] > row["merged"] > 0.3  # a guess has 0.2
    (without,) = call(*ask).document["rows"]
    assert (without["metric"], without["expert"]) == ("agreement", None)
    assert without["merged"] == without["agreement"] == row["agreement"]


def test_what_corruptions_cost_is_measured_beside_the_experts(published: Published) -> None:
    asked = "contrast:1,contrast:5,gaussian_noise:3"
    found = call("eval", "tiny", "--corrupt", asked, *words(published), "--json").document
    rows = {(row["task"], row["corruption"], row["severity"]): row for row in found["rows"]}
    sets = [(None, 0), ("contrast", 1), ("contrast", 5), ("gaussian_noise", 3)]
    assert [*rows] == [(task, *of) for task in TASKS for of in sets]
    clean = {task.name: task for task in published.summary.tasks}
    for task in TASKS:
        row = rows[task, None, 0]
        assert (row["merged"], row["agreement"]) == (clean[task].merged, clean[task].agreement)
    fell = [rows[t, None, 0]["merged"] - rows[t, "contrast", 5]["merged"] for t in TASKS[:3]]
    assert sum(fell) > 0 and all(rows[t, "contrast", 5]["examples"] == TEST for t in TASKS[:3])
    table = call("eval", "tiny", "--task", "four", "--corrupt", "blur:2", *words(published)).out
    assert re.search(r"four +blur +2 +agreement", table)


def test_an_expert_that_is_gone_is_left_out_where_there_are_labels(
    tiny: TinyZoo, tmp_path: Path, new: Path
) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    job = zoo.job_file(tmp_path / "store", tasks=("five", "two"))
    place = ("--store", str(tmp_path / "store"))
    assert call("run", job, *place).code == 0
    shutil.rmtree(zoo.folder / "five")
    ask = ("eval", "tiny", "--task", "five", "--data", f"{new}#test", *place)
    (row,) = call(*ask, "--labels", "--json").document["rows"]
    assert row["metric"] == "accuracy" and row["expert"] is row["agreement"] is None
    assert "the expert of task 'five'" in call(*ask).sentence


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--labels"], "--labels: expected --data"),
        (["--data", "x.npz"], "--data: expected --task"),
        (["--corrupt", "blurr"], "did you mean 'blur'"),
        (["--corrupt", "typos:2"], "typos corrupts no images"),
        (["--task", "six"], "has no task 'six'"),
        (["--task", "five", "--data", "nowhere.npz"], "--data .*nowhere.npz"),
        (["--task", "five", "--route"], "--route and --foreign are of the job's data"),
    ],
)
def test_what_cannot_be_measured_is_said(published: Published, asked: list[str], said: str) -> None:
    refused = call("eval", "tiny", *asked, *words(published))
    assert refused.code == 2 and re.search(said, refused.err), refused.err
