"""Named tensors as the bytes of a safetensors file, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Later:
    """A tensor that is made when its bytes are asked for, and let go then."""

    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    dtype: torch.dtype = torch.float32


def in_float32(tensor: Tensor) -> Later:
    """A tensor in float32, whatever it is kept in."""
    return Later(tuple(tensor.shape), lambda: tensor.detach().float())


class TensorFile:
    """Named tensors as one safetensors file, a tensor at a time: no copy of all is ever held.

    Its bytes are those of ``tensors_as_bytes``.
    """

    def __init__(self, tensors: Mapping[str, Tensor | Later]) -> None:
        self._tensors = tensors
        # What safetensors says of as many single numbers: the order and the form are its own.
        numbers = {name: torch.zeros(1, dtype=of.dtype) for name, of in tensors.items()}
        small = save(numbers, metadata=_METADATA)
        entries: dict[str, Any] = json.loads(small[8 : 8 + int.from_bytes(small[:8], "little")])
        self._names = [name for name in entries if name in tensors]
        stop = 0
        for name in self._names:
            start, shape = stop, tensors[name].shape
            stop += math.prod(shape) * tensors[name].dtype.itemsize
            entries[name] |= {"shape": list(shape), "data_offsets": [start, stop]}
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        self._header = len(header).to_bytes(8, "little") + header
        self.size = len(self._header) + stop

    def __iter__(self) -> Iterator[memoryview]:
        """Piece after piece; each holds until the next is asked for."""
        yield memoryview(self._header)
        for name in self._names:
            found = self._tensors[name]
            tensor = found.make() if isinstance(found, Later) else found
            yield _bytes_of(tensor)


def _bytes_of(tensor: Tensor) -> memoryview:
    array: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def tensors_as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Named tensors as one safetensors file, in a fixed order: equal tensors, equal bytes."""
    ordered = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    data: bytes = save(ordered, metadata=_METADATA)
    return data


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Read all, or only the named, tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in (names or file.keys())}
