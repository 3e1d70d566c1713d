"""The digits zoo: one vision transformer pretrained on written digits, and eight experts from it.

    DIR/base/            the pretrained model, a ``save_pretrained`` folder
    DIR/<task>/          an expert, of the same form
    DIR/data/<task>.npz  what it was trained and tested on
    DIR/zoo.json         what the zoo was made from, and the hash of every file

The tasks conflict: each expert bends the same small backbone to another way of seeing digits, and
the average of their weights serves none of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.zoo.content import is_current, replacing
from jobs.zoo.digit_tasks import data_hash, write_data
from jobs.zoo.recipe import DIGITS, Recipe
from tintray.errors import TintrayError

LIBRARIES = ("numpy", "pillow", "safetensors", "scikit-learn", "torch", "transformers")
SIZE = 24 * 2**20  # bytes; three times what the zoo takes
MAX_WORKERS = 4  # each holds its own torch, some 480 MB


def build(
    directory: Path,
    *,
    on_progress: Callable[[str], None] | None = None,
    recipe: Recipe = DIGITS,
    workers: int | None = None,
) -> Path:
    """Make the digits zoo in ``directory``, unless it is already there and intact.

    Parameters
    ----------
    directory
        Absent, empty, or an earlier build; replaced as a whole once the new build is finished.
    on_progress
        Called with one line of text after each step.
    recipe
        What to build; tests use a smaller one.
    workers
        How many models to train at once, by default one per core and at most four. The files do
        not depend on it.

    Raises
    ------
    InputError
        ``directory`` holds something else or cannot be written, or scikit-learn is missing.
    TintrayError
        A training process died.
    """
    report = on_progress or (lambda _line: None)
    made_from = provenance(recipe)
    if is_current(directory, made_from):
        report(f"{directory} is up to date")
        return directory
    with replacing(directory, made_from, size=SIZE) as building:
        (building / "data").mkdir()
        for name in recipe.tasks:
            write_data(name, building / "data" / f"{name}.npz")
        with _processes(workers or _cores()) as pool:
            _train(building, recipe, pool, report)
    return directory


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Everything that the zoo's content depends on, but the kind of processor."""
    return {
        "recipe": asdict(recipe),
        "libraries": {name: version(name) for name in LIBRARIES},
        "data_sha256": data_hash(recipe.tasks),
    }


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
