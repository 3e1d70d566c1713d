"""The scenes zoo: one Segformer, and experts for what a camera sees of rendered rooms.

Three tasks on the same rooms: which surface a pixel shows, how far it is, which way it faces. The
base learns all three at once, on plain rooms with few objects; experts go on from it, one each, on
textured, noisy rooms with more. With ``data``, two experts segment real images, streets (CamVid)
and faces (FASSEG), of which the base has seen nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.zoos import building
from benchmarks.zoos.arrays import read_arrays
from benchmarks.zoos.dense_recipe import KINDS, REAL, DenseRecipe, SceneSet, kind_of
from benchmarks.zoos.rendering import CLASSES, Scenes, render
from tintray.jobs.config.reference import editor_line

VOID = 255
"""The label of pixels that count as none."""

_SETTINGS = """\
tint: {sites: segformer.stages.0}
fit: {rounds: 300, batch_size: 16, correction_lr: 1.0e-3, correction_optimiser: adam, warmup: 10}
"""
"""Of the jobs: chosen by agreement on held-back images (docs/benchmarks.md)."""
_VOID_CLASS = "unlabelled(void)"


def build(
    directory: Path,
    data: Path | None = None,
    *,
    on_progress: Callable[[str], None] | None = None,
    recipe: DenseRecipe | None = None,
    workers: int | None = None,
) -> Path:
    """Make the scenes zoo in ``directory``, with a job file, ``job.yaml``, for its three tasks.

    Parameters
    ----------
    data
        A folder with ``camvid64.npz`` and ``fasseg64.npz``: two experts are made for them, and a
        second job file, ``segmentation.yaml``, for all three tasks of segmentation.

    Raises
    ------
    InputError
        As ``building.build``; also where ``data`` cannot be used.
    """
    chosen = recipe or DenseRecipe()
    real = () if data is None else REAL
    chosen = replace(chosen, tasks=(*KINDS, *real))
    files = {name: _read(data / f"{name}.npz") for name in real} if data is not None else {}

    @cache
    def rendered(scenes: SceneSet) -> Scenes:
        return render(scenes.count, chosen.side, scenes.style, scenes.seed)

    def base() -> dict[str, NDArray[Any]]:
        return _base(rendered(chosen.pretraining_scenes))

    def task(name: str) -> dict[str, NDArray[Any]]:
        if name in files:
            return files[name]
        return _task(name, rendered(chosen.training_scenes), rendered(chosen.test_scenes))

    jobs = {"job.yaml": job_file("scenes", tuple(KINDS))}
    if real:
        jobs["segmentation.yaml"] = job_file("segmentation", ("segments", *real))
    return building.build(
        directory,
        chosen,
        building.Source(base, task, trainer="benchmarks.zoos.dense_experts"),
        on_progress=on_progress,
        workers=workers,
        extra=jobs,
    )


def job_file(name: str, tasks: tuple[str, ...]) -> str:
    """A job over tasks of the zoo, as YAML; paths start from the zoo's folder."""
    lines = [editor_line(), f"name: {name}", "base: base", "tasks:"]
    lines += [
        f"- {{name: {task}, kind: {kind_of(task)}, expert: {task}, "
        f"pool: {{path: data/{task}.npz}}, test: {{path: data/{task}.npz, split: test}}}}"
        for task in tasks
    ]
    return "\n".join([*lines, _SETTINGS])


def _base(scenes: Scenes) -> dict[str, NDArray[Any]]:
    return {
        "x_train": scenes.images,
        "segments_train": scenes.segments,
        "depth_train": scenes.depth,
        "normals_train": scenes.normals,
        "class_names": np.array(CLASSES),
    }


def _task(name: str, train: Scenes, test: Scenes) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for split, scenes in (("train", train), ("test", test)):
        found |= {f"x_{split}": scenes.images, f"y_{split}": getattr(scenes, name)}
    return found | ({"class_names": np.array(CLASSES)} if name == "segments" else {})


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """A file with ``x_SPLIT``, ``seg_SPLIT`` and ``class_names``; void becomes ``VOID``."""
    arrays = read_arrays(path, ("x_train", "seg_train", "x_test", "seg_test", "class_names"))
    names = [str(name) for name in arrays["class_names"]]
    void = names.index(_VOID_CLASS) if _VOID_CLASS in names else VOID
    found: dict[str, NDArray[Any]] = {}
    for split in ("train", "test"):
        segments = arrays[f"seg_{split}"]
        found[f"x_{split}"] = arrays[f"x_{split}"]
        found[f"y_{split}"] = np.where(segments == void, VOID, segments).astype(np.uint8)
    return found | {"class_names": np.array([name for name in names if name != _VOID_CLASS])}
