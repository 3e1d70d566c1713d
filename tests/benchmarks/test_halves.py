"""The halves zoo: what experts learn from and what they answer for has nothing in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.zoos.halves import build
from benchmarks.zoos.recipe import HALVES, Schedule
from tests.tiny_zoo import TinyZoo
from tintray.errors import InputError
from tintray.jobs.config.job_file import load_spec

TASKS = ("mnist", "gtsrb")
RECIPE = replace(HALVES, tasks=TASKS, fine_tuning=Schedule(1, 1e-3, head_epochs=1), steps=2)


@pytest.fixture(scope="module")
def data(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "zoo").mkdir()
    (folder / "data/vision").mkdir(parents=True)
    tiny.copy(folder / "tiny")
    (folder / "tiny/base").rename(folder / "zoo/base")
    random = np.random.default_rng(0)
    for name in TASKS:
        np.savez(
            folder / "data/vision" / f"{name}.npz",
            x_train=random.integers(0, 256, (21, 16, 16, 3)).astype(np.uint8),
            y_train=np.arange(21) % 3,
            x_test=random.integers(0, 256, (6, 16, 16, 3)).astype(np.uint8),
            y_test=np.arange(6) % 3,
            class_names=np.array(["a", "b", "c"]),
        )
    return folder


@pytest.mark.usefixtures("training_here")
def test_no_expert_has_seen_an_image_of_its_pool(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    zoo = build(tmp_path / "halves", data, recipe=RECIPE, on_progress=said.append)
    spec = load_spec(zoo / "job.yaml")
    assert [(task.name, task.pool.split) for task in spec.tasks] == [(n, "pool") for n in TASKS]
    for name in TASKS:
        whole = np.load(data / "data/vision" / f"{name}.npz")["x_train"]
        with np.load(zoo / "data" / f"{name}.npz") as arrays:
            seen, new = ({image.tobytes() for image in arrays[f"x_{s}"]} for s in ("train", "pool"))
            assert "y_pool" not in arrays.files
        assert (len(seen), len(new)) == (10, 11)
        assert seen | new == {image.tobytes() for image in whole}
        weights = (zoo / name / "model.safetensors").read_bytes()
        assert weights != (zoo / "base/model.safetensors").read_bytes()
    base = (data / "zoo/base/model.safetensors").read_bytes()
    assert (zoo / "base/model.safetensors").read_bytes() == base
    build(tmp_path / "halves", data, recipe=RECIPE, on_progress=said.append)
    assert said[-1].endswith("is up to date")


def test_without_the_base_of_the_hard_zoo_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data: expected the base of the hard zoo"):
        build(tmp_path / "halves", tmp_path)
