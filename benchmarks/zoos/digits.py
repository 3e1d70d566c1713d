"""The digits zoo: one vision transformer pretrained on written digits, and eight experts from it.

The tasks conflict: each expert bends the same small backbone to another way of seeing digits, and
the average of their weights serves none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.zoos import building
from benchmarks.zoos.digit_tasks import base_arrays, task_arrays
from benchmarks.zoos.recipe import DIGITS, Recipe

SOURCE = building.Source(
    base_arrays,
    task_arrays,
    size=24 * 2**20,  # three times what the zoo takes
    libraries=("scikit-learn",),
)


def build(
    directory: Path,
    *,
    on_progress: Callable[[str], None] | None = None,
    recipe: Recipe = DIGITS,
    workers: int | None = None,
) -> Path:
    """Make the digits zoo in ``directory``, unless it is already there and intact.

    Raises
    ------
    InputError
        As ``building.build``; also where scikit-learn is missing.
    """
    return building.build(directory, recipe, SOURCE, on_progress=on_progress, workers=workers)
