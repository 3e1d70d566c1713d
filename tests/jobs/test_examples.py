"""The job files that come with the project: each is one that `tintray run` reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from examples.digits import TASKS, load, split, write_data
from tintray.jobs.config.job_file import JobSpec, load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = (8, 14, 20)


def clip(size: int) -> JobSpec:
    return load_spec(EXAMPLES / f"clip-vit-b32-{size}.yaml")


@pytest.mark.parametrize("size", SIZES)
def test_the_classic_setting_is_as_published(size: int) -> None:
    spec = clip(size)
    assert spec.name == f"clip-vit-b32-{size}"
    assert spec.base == "openai/clip-vit-base-patch32"
    assert len(spec.tasks) == size
    for task in spec.tasks:
        # a data set and the model that was fine-tuned on it: "_" and "-" are not always the same
        name = task.expert.removeprefix("tanganke/clip-vit-base-patch32_").replace("_", "-")
        assert name == task.name
        assert task.test is not None
        assert task.pool.path == task.test.path
        assert task.pool.path.startswith("hf://")
        assert task.pool.split == "train"  # no test image is in a pool
        assert task.test.split in ("test", "validation")
        assert task.kind == "classification"
        assert all("{}" in template for template in task.zero_shot.templates)


def test_each_setting_holds_the_smaller_one() -> None:
    small, middle, large = (clip(size).tasks for size in SIZES)
    assert small == middle[:8]
    assert middle == large[:14]
    classes = {task.name: task.zero_shot.classes for task in large}
    counts = {name: len(found) for name, found in classes.items() if found is not None}
    assert counts == {
        "eurosat": 10,
        "gtsrb": 43,
        "pcam": 2,
        "fer2013": 7,
        "stl10": 10,
        "emnist-letters": 26,
        "kmnist": 10,
        "rendered-sst2": 2,
    }


def test_the_demo_trains_its_experts_on_parts_that_share_no_image(tmp_path: Path) -> None:
    """And its job file finds what they are, and their data."""
    images, digits = load()
    parts = split(digits)
    assert sorted(np.concatenate(parts)) == list(range(len(images)))
    for part in parts:
        assert np.ptp(np.bincount(digits[part])) <= 0.1 * len(part) / 10 + 2
    zoo = tmp_path / "zoo/digits"
    for folder in ("base", "data", *TASKS):
        (zoo / folder).mkdir(parents=True)
    write_data(zoo / "data", TASKS)
    for name, show in TASKS.items():
        with np.load(zoo / "data" / f"{name}.npz") as shown:
            assert np.array_equal(shown["x_test"], show(images)[parts[2]])
            assert set(shown["y_train"]) == set(range(len(shown["class_names"])))
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLES / "digits.yaml", tmp_path / "examples")
    spec = load_spec(tmp_path / "examples/digits.yaml")  # refuses a path that leads nowhere
    assert [Path(task.expert).name for task in spec.tasks] == list(TASKS)
