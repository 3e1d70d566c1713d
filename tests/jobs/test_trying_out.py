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
from tests.sorts import SORTS, make_zoo, write_yaml
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


def both(*damages: Damage) -> Damage:
    """One after the other."""
    return lambda zoo, job: [damage(zoo, job) for damage in damages]


LONG = " ".join(f"w{n % 40}" for n in range(60))
NOT_RESIZED = config("preprocessor_config.json", do_resize=False)
NOT_CUT = config("tokenizer_config.json", model_max_length=128)
POOL, TEST = (f"tasks.two.expert cannot be run on tasks.two.{data}" for data in ("pool", "test"))
PICTURES: Mapping[str, tuple[Damage, str | None]] = {
    "a processor of another size": (
        config("preprocessor_config.json", size={"height": 20, "width": 20}),
        POOL,
    ),
    "a processor that does not resize": (NOT_RESIZED, None),
    "images of another size, not resized": (
        both(NOT_RESIZED, arrays("train", (6, 12, 12, 3))),
        POOL,
    ),
    "test images of another size, not resized": (
        both(NOT_RESIZED, arrays("test", (6, 12, 12, 3))),
        TEST,
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
        both(kind("regression"), section("objective", labels="entropy")),
        "tasks.two",
    ),
}
TEXTS: Mapping[str, tuple[Damage, str | None]] = {
    "texts longer than the positions": (both(NOT_CUT, rows("train", "w1", LONG, "w2")), POOL),
    "test texts longer than the positions": (both(NOT_CUT, rows("test", "w1", LONG)), TEST),
    "long texts that are cut": (rows("train", "w1", LONG), None),
    "an empty text": (rows("train", "", "w1 w2", "w3"), "tasks.two.pool"),
    "nothing but empty texts": (rows("train", "", ""), "tasks.two.pool"),
    "one token": (rows("train", "w1"), None),
}
CASES = [
    pytest.param(label, *case, id=name)
    for label, cases in (("block", PICTURES), ("language", TEXTS))
    for name, case in cases.items()
]


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """By the sort of merge that is made of it."""
    names = {label: SORTS[label].zoo for label in ("block", "language")}
    return {label: make_zoo(name, tmp_path_factory.mktemp(name)) for label, name in names.items()}


@pytest.mark.parametrize(("label", "damage", "words"), CASES)
def test_validate_and_run_say_the_same_of_a_job(
    zoos: Mapping[str, Path], tmp_path: Path, label: str, damage: Damage, words: str | None
) -> None:
    zoo = Path(shutil.copytree(zoos[label], tmp_path / "zoo"))
    section = SORTS[label].job(zoo, tmp_path / "store")
    damage(zoo, section)
    job = write_yaml(tmp_path / "job.yaml", section)
    first, then = call("validate", job), call("run", job)
    assert first.code == then.code == (0 if words is None else 2), (first.err, then.err)
    if words is not None:
        assert first.sentence == then.sentence
        assert words in first.sentence
