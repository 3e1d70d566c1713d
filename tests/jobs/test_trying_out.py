"""What ``validate`` passes does not fail in ``run`` for its input, and both say the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.answers import call
from tests.sorts import SORTS, Sort, make_zoo, write_yaml
from tests.tiny_models import save_rows

Damage = Callable[[Path, dict[str, Any]], object]


def config(file: str, **fields: Any) -> Damage:
    """Change fields of a JSON file of the second expert."""

    def damage(zoo: Path, _: dict[str, Any]) -> None:
        path = zoo / "two" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


def rows(split: str, *texts: str, label: int = 0) -> Damage:
    """Put these texts in the place of a split of the second task."""
    found = [{"text": text, "label": label} for text in texts]
    return lambda zoo, _: save_rows(zoo / f"two_{split}.jsonl", found)


def arrays(split: str, shape: tuple[int, ...] = (6, 8, 8, 3), **changed: Any) -> Damage:
    """Put these arrays in the place of a split of the second task."""
    images = np.zeros(shape, np.uint8)
    content = {"x_train": images, "y_train": np.zeros(len(images), np.int64), **changed}
    return lambda zoo, _: np.savez(zoo / f"two_{split}.npz", **content)


def section(name: str, **fields: Any) -> Damage:
    """Change a section of the job file."""

    def damage(_: Path, job: dict[str, Any]) -> None:
        job[name] = {**job.get(name, {}), **fields}

    return damage


def kind(name: str) -> Damage:
    """Say that the second task is of another kind."""
    return lambda _, job: job["tasks"][1].update(kind=name)


LONG = " ".join(f"w{n % 40}" for n in range(60))
PICTURES: Mapping[str, tuple[Damage, str | None]] = {
    "a processor of another size": (
        config("preprocessor_config.json", size={"height": 20, "width": 20}),
        "tasks.two.expert cannot be run on tasks.two.pool",
    ),
    "a processor that does not resize": (
        config("preprocessor_config.json", do_resize=False),
        None,
    ),
    "images of another size, not resized": (
        lambda zoo, job: (
            config("preprocessor_config.json", do_resize=False)(zoo, job),
            arrays("train", (6, 12, 12, 3))(zoo, job),
        ),
        "tasks.two.expert cannot be run on tasks.two.pool",
    ),
    "test images of another size, not resized": (
        lambda zoo, job: (
            config("preprocessor_config.json", do_resize=False)(zoo, job),
            arrays("test", (6, 12, 12, 3))(zoo, job),
        ),
        "tasks.two.expert cannot be run on tasks.two.test",
    ),
    "gray images": (arrays("train", (6, 8, 8)), None),
    "images with transparency": (arrays("train", (6, 8, 8, 4)), "tasks.two.pool"),
    "no image": (arrays("train", (0, 8, 8, 3)), "tasks.two.pool"),
    "one image": (arrays("train", (1, 8, 8, 3)), None),
    "a label beyond the classes": (arrays("test", y_train=np.full(6, 2)), "tasks.two.test"),
    "a label below the classes": (arrays("test", y_train=np.full(6, -1)), "tasks.two.test"),
    "too few labels": (arrays("test", y_train=np.zeros(5, np.int64)), "tasks.two.test"),
    "classes that are values": (kind("regression"), "tasks.two"),
    "classes that are pixels": (kind("segmentation"), "tasks.two"),
    "classes that are depths": (kind("depth"), "tasks.two"),
    "classes that are texts": (kind("language_modelling"), "tasks.two"),
    "features of the whole backbone": (
        section("objective", feature_weight=0.1, feature_site="vit"),
        "objective.feature_site",
    ),
    "features of a block": (
        section("objective", feature_weight=0.1, feature_site="vit.layers.0"),
        None,
    ),
    "entropy of a regression": (
        lambda zoo, job: (kind("regression")(zoo, job), section("objective", labels="entropy")),
        "tasks.two",
    ),
}
TEXTS: Mapping[str, tuple[Damage, str | None]] = {
    "texts longer than the positions": (
        lambda zoo, job: (
            config("tokenizer_config.json", model_max_length=128)(zoo, job),
            rows("train", "w1", LONG, "w2")(zoo, job),
        ),
        "tasks.two.expert cannot be run on tasks.two.pool",
    ),
    "test texts longer than the positions": (
        lambda zoo, job: (
            config("tokenizer_config.json", model_max_length=128)(zoo, job),
            rows("test", "w1", LONG)(zoo, job),
        ),
        "tasks.two.expert cannot be run on tasks.two.test",
    ),
    "long texts that are cut": (rows("train", "w1", LONG), None),
    "an empty text": (rows("train", "", "w1 w2", "w3"), "tasks.two.pool"),
    "nothing but empty texts": (rows("train", "", ""), "tasks.two.pool"),
    "one token": (rows("train", "w1"), None),
}


def damaged(sort: Sort, zoo: Path, folder: Path, damage: Damage) -> Path:
    """A copy of a zoo with the damage, and its job."""
    own = Path(shutil.copytree(zoo, folder / "zoo"))
    job = sort.job(own, folder / "store")
    damage(own, job)
    return write_yaml(folder / "job.yaml", job)


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {
        name: make_zoo(name, tmp_path_factory.mktemp(name)) for name in ("pictures", "sentences")
    }


def check(job: Path, words: str | None) -> None:
    """``validate`` and ``run`` say the same of a job, and it is what was expected."""
    first, then = call("validate", job), call("run", job)
    assert first.code == then.code == (0 if words is None else 2), (first.err, then.err)
    if words is not None:
        assert first.sentence == then.sentence
        assert words in first.sentence


@pytest.mark.parametrize(("damage", "words"), PICTURES.values(), ids=PICTURES.keys())
def test_pictures(
    zoos: Mapping[str, Path], tmp_path: Path, damage: Damage, words: str | None
) -> None:
    check(damaged(SORTS["block"], zoos["pictures"], tmp_path, damage), words)


@pytest.mark.parametrize(("damage", "words"), TEXTS.values(), ids=TEXTS.keys())
def test_texts(zoos: Mapping[str, Path], tmp_path: Path, damage: Damage, words: str | None) -> None:
    check(damaged(SORTS["language"], zoos["sentences"], tmp_path, damage), words)
