"""The scripts zoo: what its base has seen, what its experts learn from, and what tests them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.zoos.building import job_file
from benchmarks.zoos.recipe import SCRIPTS
from benchmarks.zoos.scripts import SIDE, UNSEEN, Scripts
from tintray.errors import InputError
from tintray.jobs.config.job_file import parse_spec

EXAMPLES = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten data sets of random images, some gray and some in colour, and a small Omniglot."""
    random = np.random.default_rng(0)
    for number, name in enumerate(SCRIPTS.tasks):
        shape = (28, 28) if number % 2 else (32, 32, 3)
        arrays: dict[str, Any] = {"class_names": np.array(["a", "b", "c"])}
        for split in ("train", "test"):
            arrays[f"x_{split}"] = random.integers(0, 256, (EXAMPLES, *shape), dtype=np.uint8)
            arrays[f"y_{split}"] = np.arange(EXAMPLES) % 3
        np.savez(tmp_path / f"{name}.npz", **arrays)
    np.savez(
        tmp_path / "omniglot.npz",
        x=random.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        y_char=np.arange(20) // 2,
        alphabet=np.arange(20) // 10,
        alphabet_is_background=np.array([True, False]),
    )
    return tmp_path


def test_the_base_sees_half_of_eight_sets_and_omniglots_background(folder: Path) -> None:
    data = Scripts(folder, SCRIPTS.tasks).base()
    seen = len(SCRIPTS.tasks) - len(UNSEEN)
    assert data["x_train"].shape == (10 + seen * EXAMPLES // 2, SIDE, SIDE, 3)
    assert len(data["class_names"]) == 5 + seen * 3
    assert sorted(set(data["y_train"].tolist())) == list(range(len(data["class_names"])))
    assert not any(str(name).startswith(UNSEEN) for name in data["class_names"])


def test_no_test_image_is_seen_in_training(folder: Path) -> None:
    sets = Scripts(folder, SCRIPTS.tasks)
    base = {image.tobytes() for image in sets.base()["x_train"]}
    for name in SCRIPTS.tasks:
        arrays = sets.task(name)
        training = {image.tobytes() for image in arrays["x_train"]}
        assert not training & {image.tobytes() for image in arrays["x_test"]}
        if arrays["x_test"].ndim == 4:  # as large as the base's: those can be compared
            assert not base & {image.tobytes() for image in arrays["x_test"]}
            assert name in UNSEEN or base & training


def test_the_job_file_names_what_the_zoo_holds(tmp_path: Path) -> None:
    job = yaml.safe_load(job_file("scripts", SCRIPTS.tasks))
    for name in ("base", "data"):
        (tmp_path / name).mkdir()
    for task in SCRIPTS.tasks:
        (tmp_path / task).mkdir()
        (tmp_path / "data" / f"{task}.npz").touch()
    spec = parse_spec(job, folder=tmp_path)
    assert tuple(task.name for task in spec.tasks) == SCRIPTS.tasks
    assert all(task.test is not None for task in spec.tasks)


def test_missing_data_is_named(folder: Path) -> None:
    np.savez(folder / "mnist.npz", x_train=np.zeros(3))
    with pytest.raises(InputError, match=r"^--data.*mnist\.npz' has no array 'y_train'"):
        Scripts(folder, SCRIPTS.tasks)
    (folder / "mnist.npz").unlink()
    with pytest.raises(InputError, match=r"^--data.*mnist\.npz' cannot be read"):
        Scripts(folder, SCRIPTS.tasks)
