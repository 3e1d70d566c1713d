"""``tasks[].labelled``: few labels of a pool are read where a job asks for it, and change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tintray
from tests.tiny_zoo import CLASSES, TinyZoo
from tintray.errors import DataError
from tintray.jobs.config.job_file import parse_spec


def tint(zoo: TinyZoo, store: Path, labelled: int, **objective: Any) -> str:
    """The hash of the tint of the task whose pool may be read with labels."""
    job = zoo.job(store, tasks=("five", "four"), objective={"filter": "none", **objective})
    job["tasks"][0]["labelled"] = labelled
    merge = tintray.run(parse_spec(job, folder=zoo.folder))
    return merge.manifest.files["tints/five.safetensors"].sha256


@pytest.fixture
def wrong(tiny: TinyZoo, tmp_path: Path) -> TinyZoo:
    """The zoo with another label at every example of the pool."""
    zoo = tiny.copy(tmp_path / "wrong")
    labels = zoo.arrays("five")["y_train"]
    zoo.replace_arrays("five", y_train=(labels + 1) % CLASSES["five"])
    return zoo


def test_true_labels_are_learned_where_they_are_asked_for(
    tiny: TinyZoo, wrong: TinyZoo, tmp_path: Path
) -> None:
    def of(zoo: TinyZoo, labelled: int, **objective: Any) -> str:
        return tint(zoo, tmp_path / "store", labelled, **objective)

    plain = of(tiny, 0)
    assert plain == of(tiny, 20)  # they only calibrate, and nothing is filtered
    right = of(tiny, 20, true_labels=True)
    assert right != plain
    assert of(wrong, 20, true_labels=True) != right
    assert of(wrong, 0, true_labels=True) == plain


def test_more_labels_than_examples_are_refused(tiny: TinyZoo, tmp_path: Path) -> None:
    pool = len(np.asarray(tiny.arrays("five")["y_train"]))
    with pytest.raises(DataError, match=rf"tasks\.five\.labelled: expected at most the {pool}"):
        tint(tiny, tmp_path, pool + 1)
