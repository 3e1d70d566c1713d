"""The scenes zoo: experts of three kinds on rendered rooms, and of one on real images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tintray
from benchmarks import families
from benchmarks.zoos.dense_recipe import DenseRecipe, Pyramid, SceneSet
from benchmarks.zoos.recipe import Schedule
from benchmarks.zoos.rendering import Style
from benchmarks.zoos.scenes import VOID, build
from tests import tiny_models as tiny
from tintray.errors import InputError
from tintray.jobs.config.job_file import load_spec

SIDE = 32
TINY = DenseRecipe(
    side=SIDE,
    pretraining_scenes=SceneSet(40, 1, Style((1, 2), textured=False, noise=2.0)),
    training_scenes=SceneSet(40, 2),
    test_scenes=SceneSet(12, 3),
    architecture=Pyramid((8, 16), (1, 1), (2, 2), (1, 2), decoder_size=16),
    pretraining=Schedule(8, 1e-2, batch_size=8),
    fine_tuning=Schedule(6, 3e-3, batch_size=8),
    real_fine_tuning=Schedule(6, 3e-3, batch_size=4),
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of the form of the real ones, one of which has a class that is none."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    names = {"camvid64": ["sky", "road", "unlabelled(void)"], "fasseg64": ["skin", "hair"]}
    for name, classes in names.items():
        arrays: dict[str, Any] = {"class_names": np.array(classes)}
        for split, count in (("train", 16), ("test", 8)):
            segments = np.zeros((count, SIDE, SIDE), np.uint8)
            segments[:, SIDE // 2 :] = 1
            segments[:, :2] = len(classes) - 1
            noise = random.normal(0, 10, (count, SIDE, SIDE, 3))
            images = np.where(segments[..., None] == 0, 160, 80) + noise
            arrays |= {f"x_{split}": images.astype(np.uint8), f"seg_{split}": segments}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def zoo(training_here: None, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "scenes"
    return build(folder, photographs, recipe=TINY, workers=1)


def test_three_kinds_are_merged_and_measured(zoo: Path, tmp_path: Path) -> None:
    given = [f"store={tmp_path / 'store'}", "cluster.workers=0", "fit.rounds=12"]
    summary = tintray.run(load_spec(zoo / "job.yaml", given)).summary()
    found = {task.name: task for task in summary.tasks}
    assert (found["segments"].expert or 0) > 0.3  # of five classes, after a second of training
    assert (found["depth"].expert or 1) < 0.5
    assert summary.normalised_accuracy is not None and summary.normalised_accuracy > 0.8
    merge = tintray.load(summary.url)
    assert {name: list(merge.task(name).score.details) for name in found} == {
        "segments": ["miou", "pixel_accuracy"],
        "depth": ["relative_error", "absolute_error"],
        "normals": ["degrees", "within_11_degrees"],
    }
    with np.load(zoo / "data" / "depth.npz") as arrays:
        images = list(arrays["x_test"][:3])
    batch = dict(merge.processor("depth")(images, return_tensors="pt"))
    for name in found:
        tiny.check_export(merge, name, tmp_path, batch)


def test_real_images_come_with_a_job_of_their_own(zoo: Path) -> None:
    with np.load(zoo / "data" / "camvid64.npz") as arrays:
        assert set(np.unique(arrays["y_test"])) == {0, 1, VOID}
        assert arrays["class_names"].tolist() == ["sky", "road"]
    spec = load_spec(zoo / "segmentation.yaml")
    assert [task.name for task in spec.tasks] == ["segments", "camvid64", "fasseg64"]
    assert {task.kind for task in spec.tasks} == {"segmentation"}


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--data: '.*camvid64\.npz' cannot be read"):
        build(tmp_path / "zoo", tmp_path, recipe=TINY)


def test_the_benchmark_makes_its_tables_of_the_zoo(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scenes").symlink_to(zoo)
    given = ["--zoos", str(tmp_path), "--only", "dense", "--rows", "head", "stage"]
    families.main([*given, "--rounds", "12"])
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert {name for name, value in found.items() if value is None} == set(found) - {"dense"}
    assert 0.3 < found["dense"] < 3
    rows = [line for line in lines if line.startswith(("| experts", "| head", "| stage"))]
    assert len(rows) == 6  # of two tables
    shutil.rmtree(tmp_path / "store")
    families.main([*given, "--rounds", "12"])  # from what the first has kept
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


def test_held_back_examples_take_the_place_of_test_sets(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes").symlink_to(zoo)
    options = SimpleNamespace(
        rounds=12, tasks=2, store=tmp_path / "store", workers=0, set=[], held_back=True
    )
    spec = families.job(families.FAMILIES["segmentation"], tmp_path, families.AVERAGE, options)
    assert [task.name for task in spec.tasks] == ["segments", "camvid64"]
    for task in spec.tasks:
        assert task.test is not None and task.test.path == task.pool.path
        assert (task.pool.split, task.test.split) == ("train[:80%]", "train[80%:]")
