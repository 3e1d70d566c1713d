"""Zoos that are trained in this process; tests/jobs/test_zoo.py compares that with processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import pytest


class _Here(Executor):
    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **options))
        return done


@contextmanager
def _here(workers: int, module: str) -> Iterator[Executor]:
    import torch

    with torch.random.fork_rng():
        yield _Here()


@pytest.fixture(scope="module")
def training_here() -> Iterator[None]:
    """No process is started for a zoo, which would load torch and transformers for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for caller in ("building", "text"):
            patch.setattr(f"benchmarks.zoos.{caller}.processes", _here)
        yield
