"""Named tensors as the bytes of a safetensors file, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor


def tensors_as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Named tensors as one safetensors file, in a fixed order: equal tensors, equal bytes."""
    ordered = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    data: bytes = save(ordered, metadata={"format": "pt"})
    return data


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Read all, or only the named, tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in (names or file.keys())}
