"""``tasks[].labelled``: few labels of a pool are read where a job asks for it, and change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def test_true_labels_are_learned_where_they_are_asked_for(tiny: TinyZoo, tmp_path: Path) -> None:
    wrong = tiny.copy(tmp_path / "wrong")
    labels = wrong.arrays("five")["y_train"]
    wrong.replace_arrays("five", y_train=(labels + 1) % CLASSES["five"])

    def of(zoo: TinyZoo, labelled: int, **objective: Any) -> str:
        return tint(zoo, tmp_path / "store", labelled, **objective)

    plain = of(tiny, 0)
    assert plain == of(tiny, 20)  # they only calibrate, and nothing is filtered
    right = of(tiny, 20, true_labels=True)
    assert right != plain
    assert of(wrong, 20, true_labels=True) != right
    assert of(wrong, 0, true_labels=True) == plain
    pool = len(labels)
    with pytest.raises(DataError, match=rf"tasks\.five\.labelled: expected at most the {pool}"):
        of(tiny, pool + 1)
