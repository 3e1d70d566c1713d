"""Arrays as members exchange them: float32 numpy, read from the object store without a copy."""

from __future__ import annotations

import resource
import warnings

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def readable(array: Floats) -> torch.Tensor:
    """A tensor over the array's own memory, to be read only: other processes may share it."""
    with warnings.catch_warnings():
        # torch warns that it cannot forbid writing; nobody here writes.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
