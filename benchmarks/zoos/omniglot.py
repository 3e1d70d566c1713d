"""The Omniglot zoo: 50 alphabets, each written in 4 directions, are 200 tasks with an expert each.

Omniglot (Lake, Salakhutdinov and Tenenbaum, Science 2015) has 1,623 characters of 50 alphabets,
each drawn once by 20 people. The base is pretrained on the characters of the 30 background
alphabets, upright; every task names the characters of one alphabet, turned by a quarter, a half or
three quarters of a circle, or not at all. Experts are trained on drawers 1 to 14 and tested on
drawers 15 to 20; no drawing of a test set was seen by the base or by any expert.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.zoos import building
from benchmarks.zoos.adapters import check_lora
from benchmarks.zoos.arrays import read_arrays
from benchmarks.zoos.recipe import Recipe, omniglot
from tintray.errors import InputError

TURNS = (0, 90, 180, 270)
TRAINING_DRAWERS = 14
_NEEDED = ("x", "y_char_in_alphabet", "alphabet", "drawer", "alphabet_names")
_SETTINGS = "merge: {init: average}\nfit: {rounds: 60}\n"
_LORA_SETTINGS = """\
merge: {init: average}
objective: {temperature: 4}
fit: {rounds: 60, tint_lr: 1.0e-3}
"""  # adapters stay near their base: heads that learn fast would lose more than they gain


class Omniglot:
    """The drawings in one npz file.

    Parameters
    ----------
    path
        An npz with ``x`` uint8 [N, 28, 28], and for each drawing ``alphabet``,
        ``y_char_in_alphabet`` and ``drawer`` (from 1); ``alphabet_names`` and, optionally,
        ``alphabet_is_background`` by alphabet.

    Raises
    ------
    InputError
        The file is not there, or is not such an npz.
    """

    def __init__(self, path: Path) -> None:
        self._arrays = read_arrays(path, _NEEDED)
        names = [_slug(str(name)) for name in self._arrays["alphabet_names"]]
        self.tasks = {
            f"{name}_{turn}": (number, turn) for number, name in enumerate(names) for turn in TURNS
        }

    def base(self) -> dict[str, NDArray[Any]]:
        """What the base learns: upright characters of the background alphabets, in one head."""
        arrays = self._arrays
        count = len(arrays["alphabet_names"])
        background = arrays.get("alphabet_is_background", np.ones(count, dtype=bool))
        rows = background[arrays["alphabet"]] & (arrays["drawer"] <= TRAINING_DRAWERS)
        # One class per character: its alphabet and its number there.
        pairs = np.stack([arrays["alphabet"], arrays["y_char_in_alphabet"]], axis=1)[rows]
        names, labels = np.unique(pairs, axis=0, return_inverse=True)
        return {
            "x_train": arrays["x"][rows],
            "y_train": labels.reshape(-1).astype(np.int64),
            "class_names": np.array([f"{alphabet}.{char}" for alphabet, char in names]),
        }

    def task(self, name: str) -> dict[str, NDArray[Any]]:
        """One task's data: an alphabet, turned."""
        number, turn = self.tasks[name]
        arrays = self._arrays
        found: dict[str, NDArray[Any]] = {}
        for split, drawers in (
            ("train", arrays["drawer"] <= TRAINING_DRAWERS),
            ("test", arrays["drawer"] > TRAINING_DRAWERS),
        ):
            rows = (arrays["alphabet"] == number) & drawers
            turned = np.rot90(arrays["x"][rows], turn // 90, (1, 2))
            found[f"x_{split}"] = np.ascontiguousarray(turned)
            found[f"y_{split}"] = arrays["y_char_in_alphabet"][rows].astype(np.int64)
        classes = 1 + int(found["y_train"].max())
        return found | {"class_names": np.array([str(char) for char in range(classes)])}


def build(
    directory: Path,
    data: Path,
    *,
    tasks: int | None = None,
    lora: int | None = None,
    on_progress: Callable[[str], None] | None = None,
    recipe: Recipe | None = None,
    workers: int | None = None,
) -> Path:
    """Make the Omniglot zoo in ``directory``, with a job file for all its tasks, ``job.yaml``.

    Parameters
    ----------
    data
        The npz file with the drawings; see ``Omniglot``.
    tasks
        How many of its tasks, spread over the alphabets; all by default.
    lora
        Make experts that are LoRA adapters of this rank; whole models by default.

    Raises
    ------
    InputError
        As ``building.build``; also where ``data`` cannot be used, or adapters cannot be made.
    """
    drawings = Omniglot(data)
    every = list(drawings.tasks)
    count = len(every) if tasks is None else tasks
    if not 1 <= count <= len(every):
        raise InputError(f"--tasks: expected 1 to {len(every)}, found {count}")
    names = tuple(every[len(every) * index // count] for index in range(count))
    if lora is not None:
        check_lora(lora)
    chosen = omniglot(names, lora) if recipe is None else replace(recipe, tasks=names, lora=lora)
    settings = _SETTINGS if lora is None else _LORA_SETTINGS
    source = building.Source(
        drawings.base, drawings.task, libraries=() if lora is None else ("peft",)
    )
    return building.build(
        directory,
        chosen,
        source,
        on_progress=on_progress,
        workers=workers,
        extra={"job.yaml": building.job_file("omniglot", names) + settings},
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
