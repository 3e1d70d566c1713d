"""The job files that come with the project: each is one that `tintray run` reads."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_the_digits_of_the_demo_are_those_of_the_zoo(tmp_path: Path) -> None:
    """And so, by the same recipe, are the models that learn from them."""
    from runpy import run_path

    import numpy as np

    from benchmarks.zoos.digit_tasks import TASKS, base_arrays, task_arrays

    made = run_path(str(Path(__file__).parents[2] / "examples" / "digits.py"))
    made["write_data"](tmp_path)
    wanted = {"base": base_arrays()} | {name: task_arrays(name) for name in TASKS}
    assert {path.stem for path in tmp_path.iterdir()} == wanted.keys()
    for name, arrays in wanted.items():
        with np.load(tmp_path / f"{name}.npz") as found:
            assert found.files == list(arrays)
            assert all(np.array_equal(found[key], array) for key, array in arrays.items())
