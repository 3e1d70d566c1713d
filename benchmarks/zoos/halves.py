"""The halves zoo: the ten experts of the hard zoo, retrained so that their pools are new to them.

The base is that of the hard zoo. Each expert is fine-tuned on one half of its data set's training
images, drawn at random; the other half is its pool. Test sets are the data sets' own. So a merge
can be measured where experts answer for what they have not seen in training.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.zoos import building
from benchmarks.zoos.arrays import read_arrays
from benchmarks.zoos.recipe import HALVES, Recipe
from tintray.errors import InputError

_ARRAYS = ("x_train", "y_train", "x_test", "y_test", "class_names")


def halves(arrays: building.Arrays, name: str) -> dict[str, np.ndarray]:
    """A task's data file: splits ``train`` and ``test``, and ``pool``, which has no labels."""
    count = len(arrays["x_train"])
    order = np.random.default_rng(zlib.crc32(name.encode())).permutation(count)
    seen, new = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    return {
        "x_train": arrays["x_train"][seen],
        "y_train": arrays["y_train"][seen].astype(np.int64),
        "x_pool": arrays["x_train"][new],
        "x_test": arrays["x_test"],
        "y_test": arrays["y_test"].astype(np.int64),
        "class_names": arrays["class_names"],
    }


def build(
    directory: Path,
    data: Path,
    *,
    on_progress: Callable[[str], None] | None = None,
    recipe: Recipe = HALVES,
    workers: int | None = None,
) -> Path:
    """Make the halves zoo in ``directory``, with a job file for all its tasks, ``job.yaml``.

    Parameters
    ----------
    data
        The folder with ``zoo/base`` and the data sets, ``data/vision/<task>.npz``.

    Raises
    ------
    InputError
        As ``building.build``; also where ``data`` cannot be used.
    """
    base = data / "zoo" / "base"
    if not (base / "model.safetensors").is_file():
        raise InputError(f"--data: expected the base of the hard zoo in '{base}', found none")
    sets = {
        name: halves(read_arrays(data / "data" / "vision" / f"{name}.npz", _ARRAYS), name)
        for name in recipe.tasks
    }
    return building.build(
        directory,
        recipe,
        building.Source(base, sets.__getitem__),
        on_progress=on_progress,
        workers=workers,
        extra={"job.yaml": building.job_file("halves", recipe.tasks, pool="pool")},
    )
