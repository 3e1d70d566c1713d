"""Building a zoo: data files first, then the base, then its experts, several at a time.

DIR/base/            the pretrained model, a ``save_pretrained`` folder
DIR/<task>/          an expert, of the same form
DIR/data/base.npz    what the base was pretrained on
DIR/data/<task>.npz  what an expert was trained and tested on
DIR/zoo.json         what the zoo was made from, and the hash of every file
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.zoos.content import is_current, replacing
from benchmarks.zoos.dense_recipe import DenseRecipe
from benchmarks.zoos.processes import cores, processes
from benchmarks.zoos.recipe import Recipe
from tintray.jobs.config.reference import editor_line

Arrays = Mapping[str, NDArray[np.generic]]
"""A data file: ``x_train``, ``y_train``, ``class_names``, and ``x_test``, ``y_test`` of a task."""

AnyRecipe = Recipe | DenseRecipe

LIBRARIES = ("numpy", "pillow", "safetensors", "torch", "transformers")


@dataclass(frozen=True)
class Source:
    """Where a zoo's examples come from.

    Attributes
    ----------
    base
        What the base is pretrained on, or the folder of one that is there.
    task
        One task's data, by name.
    libraries
        Packages, besides those that all zoos use, whose versions matter to the content.
    trainer
        The module that trains: its ``train_base(zoo, recipe)`` and ``train_expert(zoo, name,
        recipe)``, which returns metrics by name on the test set.
    """

    base: Callable[[], Arrays] | Path
    task: Callable[[str], Arrays]
    libraries: tuple[str, ...] = ()
    trainer: str = "benchmarks.zoos.experts"

    def digest(self, tasks: Iterable[str]) -> str:
        """The sha256 of everything that a zoo with these tasks is trained and tested on."""
        digest = hashlib.sha256()
        parts = [(task, self.task(task)) for task in tasks]
        if isinstance(self.base, Path):
            digest.update((self.base / "model.safetensors").read_bytes())
        else:
            parts.insert(0, ("base", self.base()))
        for name, arrays in parts:
            for label, array in arrays.items():
                digest.update(f"{name}/{label}{array.shape}{array.dtype}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def build(
    directory: Path,
    recipe: AnyRecipe,
    source: Source,
    *,
    on_progress: Callable[[str], None] | None = None,
    workers: int | None = None,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Make a zoo in ``directory``, unless it is already there and intact.

    Parameters
    ----------
    directory
        Absent, empty, or an earlier build; replaced as a whole once the new build is finished.
    recipe, source
        What to train, and on what.
    on_progress
        Called with one line of text after each step.
    workers
        How many models to train at once, by default one per core and at most four. The files do
        not depend on it.
    extra
        Text files that the zoo holds besides, by name.

    Raises
    ------
    InputError
        ``directory`` holds something else or cannot be written, or the examples are not there.
    TintrayError
        A training process died.
    """
    report = on_progress or (lambda _line: None)
    made_from = provenance(recipe, source) | ({"extra": dict(extra)} if extra else {})
    if is_current(directory, made_from):
        report(f"{directory} is up to date")
        return directory
    with replacing(directory, made_from) as building:
        (building / "data").mkdir()
        if isinstance(source.base, Path):
            shutil.copytree(source.base, building / "base", copy_function=shutil.copyfile)
        else:
            _write(building / "data" / "base.npz", source.base())
        for name in recipe.tasks:
            _write(building / "data" / f"{name}.npz", source.task(name))
        for name, text in (extra or {}).items():
            (building / name).write_text(text, encoding="utf-8")
        with processes(workers or cores(), source.trainer) as pool:
            if not isinstance(source.base, Path):
                report("pretraining the base")
                pool.submit(_train_base, source.trainer, building, recipe).result()
            _train_experts(building, recipe, source.trainer, pool, report)
    return directory


def job_file(name: str, tasks: Iterable[str], *, pool: str = "train") -> str:
    """A job over all tasks of a zoo, as YAML; paths start from the zoo's folder.

    ``pool`` is the split that pools are.
    """
    split = "" if pool == "train" else f", split: {pool}"
    lines = [editor_line(), f"name: {name}", "base: base", "tasks:"]
    lines += [
        f"- {{name: {task}, expert: {task}, pool: {{path: data/{task}.npz{split}}}, "
        f"test: {{path: data/{task}.npz, split: test}}}}"
        for task in tasks
    ]
    return "\n".join([*lines, ""])


def provenance(recipe: AnyRecipe, source: Source) -> dict[str, Any]:
    """Everything that the zoo's content depends on, but the kind of processor."""
    return {
        # What a recipe leaves out is left out here: zoos of before it was known stay current.
        "recipe": {key: value for key, value in asdict(recipe).items() if value is not None},
        "libraries": {name: version(name) for name in sorted((*LIBRARIES, *source.libraries))},
        "data_sha256": source.digest(recipe.tasks),
    }


def _write(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _train_experts(
    zoo: Path,
    recipe: AnyRecipe,
    trainer: str,
    pool: ProcessPoolExecutor,
    report: Callable[[str], None],
) -> None:
    report(f"fine-tuning {len(recipe.tasks)} experts")
    pending = {
        pool.submit(_train_expert, trainer, zoo, name, recipe): name for name in recipe.tasks
    }
    for done, future in enumerate(as_completed(pending), start=1):
        found = ", ".join(f"{metric} {value:.3f}" for metric, value in future.result().items())
        report(f"expert {done}/{len(pending)} {pending[future]}: test {found}")


# What runs in a worker. The import waits until there: the parent of the pool never needs torch.


def _train_base(trainer: str, zoo: Path, recipe: AnyRecipe) -> None:
    import_module(trainer).train_base(zoo, recipe)


def _train_expert(trainer: str, zoo: Path, name: str, recipe: AnyRecipe) -> dict[str, float]:
    found: dict[str, float] = import_module(trainer).train_expert(zoo, name, recipe)
    return found
