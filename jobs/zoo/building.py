"""Building a zoo: data files first, then the base, then its experts, several at a time.

DIR/base/            the pretrained model, a ``save_pretrained`` folder
DIR/<task>/          an expert, of the same form
DIR/data/base.npz    what the base was pretrained on
DIR/data/<task>.npz  what an expert was trained and tested on
DIR/zoo.json         what the zoo was made from, and the hash of every file
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.zoo.content import is_current, replacing
from jobs.zoo.recipe import Recipe
from tintray.errors import TintrayError

Arrays = Mapping[str, NDArray[np.generic]]
"""A data file: ``x_train``, ``y_train``, ``class_names``, and ``x_test``, ``y_test`` of a task."""

LIBRARIES = ("numpy", "pillow", "safetensors", "torch", "transformers")
MAX_WORKERS = 4  # each holds its own torch, some 480 MB


@dataclass(frozen=True)
class Source:
    """Where a zoo's examples come from.

    Attributes
    ----------
    base
        What the base is pretrained on.
    task
        One task's data, by name.
    size
        Bytes that the finished zoo takes at most.
    libraries
        Packages, besides those that all zoos use, whose versions matter to the content.
    """

    base: Callable[[], Arrays]
    task: Callable[[str], Arrays]
    size: int
    libraries: tuple[str, ...] = ()

    def digest(self, tasks: Iterable[str]) -> str:
        """The sha256 of everything that a zoo with these tasks is trained and tested on."""
        digest = hashlib.sha256()
        for name, arrays in (("base", self.base()), *((task, self.task(task)) for task in tasks)):
            for label, array in arrays.items():
                digest.update(f"{name}/{label}{array.shape}{array.dtype}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def build(
    directory: Path,
    recipe: Recipe,
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
    with replacing(directory, made_from, size=source.size) as building:
        (building / "data").mkdir()
        _write(building / "data" / "base.npz", source.base())
        for name in recipe.tasks:
            _write(building / "data" / f"{name}.npz", source.task(name))
        for name, text in (extra or {}).items():
            (building / name).write_text(text, encoding="utf-8")
        with _processes(workers or _cores()) as pool:
            _train(building, recipe, pool, report)
    return directory


def job_file(name: str, tasks: Iterable[str]) -> str:
    """A job over all tasks of a zoo, as YAML; paths start from the zoo's folder."""
    lines = [f"name: {name}", "base: base", "tasks:"]
    lines += [
        f"- {{name: {task}, expert: {task}, adapt: {{path: data/{task}.npz}}, "
        f"test: {{path: data/{task}.npz, split: test}}}}"
        for task in tasks
    ]
    return "\n".join([*lines, ""])


def provenance(recipe: Recipe, source: Source) -> dict[str, Any]:
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


def _train(
    zoo: Path, recipe: Recipe, pool: ProcessPoolExecutor, report: Callable[[str], None]
) -> None:
    report("pretraining the base")
    pool.submit(_train_base, zoo, recipe).result()
    report(f"base done; fine-tuning {len(recipe.tasks)} experts")
    pending = {pool.submit(_train_expert, zoo, name, recipe): name for name in recipe.tasks}
    for done, future in enumerate(as_completed(pending), start=1):
        score = future.result()
        report(f"expert {done}/{len(pending)} {pending[future]}: {score:.1%} test accuracy")


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes, one thread of arithmetic each; what they compute is then the same anyhow."""
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        for _ in range(workers):
            pool.submit(os.getpid)  # start them all now: each loads torch for some seconds
        yield pool
    except BrokenProcessPool as error:
        raise TintrayError(
            f"a process that trained the zoo died ({workers} ran at once): it printed why, or was "
            "ended for lack of memory; a script has to build under `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Load torch and transformers at once in every worker, and end together with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from transformers.utils import logging

    import jobs.zoo.experts  # noqa: F401

    logging.disable_progress_bar()  # no bars for loading and saving tiny files


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed parent cannot tell its pool to stop


# What runs in a worker. The import waits until there: the parent of the pool never needs torch.


def _train_base(zoo: Path, recipe: Recipe) -> None:
    from jobs.zoo.experts import train_base

    train_base(zoo, recipe)


def _train_expert(zoo: Path, name: str, recipe: Recipe) -> float:
    from jobs.zoo.experts import train_expert

    return train_expert(zoo, name, recipe)


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
