"""The scripts zoo: ten real data sets, and a base that has seen most of their kind.

Scripts of five countries, letters, drawings, traffic signs and satellite images, ten tasks in all.
The base is pretrained on the first half of the training images of eight of them together with
Omniglot's background characters, in one joint head; experts are then fine-tuned in small steps from
it. Their task vectors are therefore small and alike, as those of public checkpoints are: averaging
keeps much of what they know. Two tasks, Bangla numerals and drawings, the base has never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.zoos import building
from benchmarks.zoos.arrays import read_arrays
from benchmarks.zoos.recipe import SCRIPTS, Recipe

UNSEEN = ("cmater_bangla_numerals", "quickdraw5")
SIDE = 32  # pixels; smaller images are enlarged for the base, which sees all of them together


class Scripts:
    """The data sets in one folder, one npz file each, and ``omniglot.npz``.

    Parameters
    ----------
    folder
        With ``<task>.npz`` for each task (``x_train, y_train, x_test, y_test, class_names``; uint8,
        gray [N, H, W] or colour [N, H, W, 3]) and ``omniglot.npz`` (``x, y_char, alphabet,
        alphabet_is_background``).

    Raises
    ------
    InputError
        A file is not there, or lacks an array.
    """

    def __init__(self, folder: Path, tasks: Sequence[str]) -> None:
        self._tasks = {name: read_arrays(folder / f"{name}.npz", _TASK) for name in tasks}
        self._omniglot = read_arrays(folder / "omniglot.npz", _OMNIGLOT)

    def task(self, name: str) -> dict[str, NDArray[Any]]:
        """One task's data file, as it is."""
        arrays = self._tasks[name]
        labels = {key: arrays[key].astype(np.int64) for key in ("y_train", "y_test")}
        return {key: arrays[key] for key in _TASK} | labels

    def base(self) -> dict[str, NDArray[Any]]:
        """What the base learns: characters of Omniglot and classes of eight tasks, in one head."""
        drawings = self._omniglot
        rows = drawings["alphabet_is_background"][drawings["alphabet"]]
        parts = [("omniglot", drawings["x"][rows], drawings["y_char"][rows])]
        for name, arrays in self._tasks.items():
            if name not in UNSEEN:
                half = len(arrays["x_train"]) // 2
                parts.append((name, arrays["x_train"][:half], arrays["y_train"][:half]))
        images, labels = [], []
        names: list[str] = []
        for name, x, y in parts:
            classes, numbers = np.unique(y, return_inverse=True)
            labels.append(numbers.reshape(-1) + len(names))
            names += [f"{name}.{label}" for label in classes]
            images.append(_enlarged(x))
        return {
            "x_train": np.concatenate(images),
            "y_train": np.concatenate(labels).astype(np.int64),
            "class_names": np.array(names),
        }


def build(
    directory: Path,
    data: Path,
    *,
    on_progress: Callable[[str], None] | None = None,
    recipe: Recipe = SCRIPTS,
    workers: int | None = None,
) -> Path:
    """Make the scripts zoo in ``directory``, with a job file for all its tasks, ``job.yaml``.

    Parameters
    ----------
    data
        The folder with the data sets; see ``Scripts``.

    Raises
    ------
    InputError
        As ``building.build``; also where ``data`` cannot be used.
    """
    sets = Scripts(data, recipe.tasks)
    return building.build(
        directory,
        recipe,
        building.Source(sets.base, sets.task),
        on_progress=on_progress,
        workers=workers,
        extra={"job.yaml": building.job_file("scripts", recipe.tasks)},
    )


_TASK = ("x_train", "y_train", "x_test", "y_test", "class_names")
_OMNIGLOT = ("x", "y_char", "alphabet", "alphabet_is_background")


def _enlarged(images: NDArray[Any]) -> NDArray[Any]:
    """Images [N, H, W(, 3)] as colour [N, SIDE, SIDE, 3], resized as processors do."""
    from PIL import Image

    side = (SIDE, SIDE)
    return np.stack(
        [
            np.asarray(Image.fromarray(i).convert("RGB").resize(side, Image.Resampling.BILINEAR))
            for i in images
        ]
    )
