"""Arrays as members exchange them.

By default float32 numpy, which is read from the object store without a copy; tensors on their
device where members reach each other directly (``Backend.connect``).
"""

from __future__ import annotations

import resource
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]
Sent = Floats | torch.Tensor  # to another member: an array, or directly a tensor


def readable(array: Sent, device: str = "cpu") -> torch.Tensor:
    """A tensor on a device, to be read only; in memory it is the array's own, which is shared."""
    if isinstance(array, torch.Tensor):
        return array.to(device)
    with warnings.catch_warnings():
        # torch warns that it cannot forbid writing; nobody here writes.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array).to(device)


def sent(tensor: torch.Tensor, direct: bool) -> Sent:
    """What a member answers: the tensor itself, or its numbers as an array in memory."""
    if direct:
        return tensor
    array: Floats = tensor.cpu().numpy()
    return array


def as_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors by name, in memory, as they are answered to the driver."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def as_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """What ``as_arrays`` answered, in memory of its own."""
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
