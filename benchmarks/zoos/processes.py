"""Processes that train the models of a zoo, several at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module

from tintray.errors import TintrayError

MAX_WORKERS = 4  # each holds its own torch, some 480 MB


@contextmanager
def processes(workers: int, module: str) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes, one thread of arithmetic each; what they compute is then the same anyhow."""
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(module,),
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


def _start_worker(module: str) -> None:
    """Load torch and transformers at once in every worker, and end together with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from transformers.utils import logging

    import_module(module)
    logging.disable_progress_bar()  # no bars for loading and saving tiny files


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed parent cannot tell its pool to stop


def cores() -> int:
    """How many models to train at once on this machine."""
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
