"""Zoos that are trained in this process, and drawings to train them on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


class _Here(Executor):
    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **options))
        return done


@contextmanager
def _here(workers: int, module: str) -> Iterator[Executor]:
    with torch.random.fork_rng():
        yield _Here()


@pytest.fixture(scope="module")
def training_here() -> Iterator[None]:
    """No process is started for a zoo, which would load torch and transformers for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for caller in ("building", "text"):
            patch.setattr(f"benchmarks.zoos.{caller}.processes", _here)
        yield


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Omniglot in small: alphabets of 3 and 5 characters, the second not a background one."""
    rows = [(a, c, d) for a, count in enumerate((3, 5)) for c in range(count) for d in range(1, 21)]
    alphabet, char, drawer = np.array(rows).T
    path = tmp_path_factory.mktemp("data") / "omniglot.npz"
    np.savez(
        path,
        x=np.random.default_rng(0).integers(0, 256, (len(rows), 28, 28)).astype(np.uint8),
        alphabet=alphabet,
        y_char_in_alphabet=char,
        y_char=3 * alphabet + char,
        drawer=drawer,
        alphabet_is_background=np.array([True, False]),
        alphabet_names=np.array(["Alphabet_of_the_Magi", "Futurama (new)"]),
    )
    return path
