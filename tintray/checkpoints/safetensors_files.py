"""Safetensors files as this project opens them: the safetensors library checks every header.

A file is 8 bytes of header length, a JSON header, and the tensors' bytes. The library refuses
headers whose spans leave the file, cross each other, leave gaps or do not fit their shapes; what
it accepts lies without gaps in the order that it tells, so that order and sizes give the offsets.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tintray.errors import CheckpointError
from tintray.files import open_regular

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}
"""Bytes of one number, by the name that safetensors gives its type."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; nothing of it has been read."""

    name: str
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    file: int  # which of the checkpoint's files
    offset: int  # of its first byte in that file

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return ITEM_BYTES[self.dtype]

    @property
    def floating(self) -> bool:
        """Whether it holds floating point numbers."""
        return self.dtype in ("F64", "F32", "F16", "BF16")

    @property
    def mergeable(self) -> bool:
        """Whether its numbers can be merged, and are not what the model computes itself."""
        return self.floating and not is_rebuilt(self.name)


def tensors_in(path: Path, role: str, *, number: int = 0) -> list[TensorInfo]:
    """The tensors of one safetensors file, in the order in which they lie in it.

    Raises CheckpointError if it cannot be opened, is not safetensors, or stores a type that has no
    size of its own.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise _unreadable(path, role, error) from error
    with file:
        return tensors_in_open(file.fileno(), path, role, number=number)


def tensors_in_open(descriptor: int, path: Path, role: str, *, number: int = 0) -> list[TensorInfo]:
    """The same of an open file, whatever lies at ``path`` by now; errors name ``path``."""
    infos = []
    try:
        offset = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
        with safe_open(f"/dev/fd/{descriptor}", framework="np") as file:
            for name in file.offset_keys():
                entry = file.get_slice(name)
                dtype, shape = str(entry.get_dtype()), tuple(entry.get_shape())
                if dtype not in ITEM_BYTES:
                    raise CheckpointError(
                        f"{role}: tensor '{name}' in {path} is stored as {dtype}; expected "
                        f"one of {', '.join(ITEM_BYTES)}, convert the checkpoint first"
                    )
                infos.append(TensorInfo(name, dtype, shape, number, offset))
                offset += infos[-1].numel * infos[-1].itemsize
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, role, error) from error
    return infos


def _unreadable(path: Path, role: str, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, PermissionError):
        return CheckpointError(f"{role}: {path} may not be read by this user; give it the right")
    return CheckpointError(
        f"{role}: {path} is not a safetensors file that can be read ({reason}); was it cut "
        "short or overwritten? copy it again"
    )


def merged_tables(files: Sequence[list[TensorInfo]], role: str) -> dict[str, TensorInfo]:
    """The tensors of all files of a checkpoint by name.

    Raises CheckpointError if two files hold a tensor of one name: which of them is meant cannot be
    told.
    """
    merged: dict[str, TensorInfo] = {}
    for tensors in files:
        for info in tensors:
            if info.name in merged:
                raise CheckpointError(
                    f"{role}: tensor '{info.name}' is in two files of the checkpoint; expected it "
                    "in one, write the checkpoint again"
                )
            merged[info.name] = info
    return merged


def is_rebuilt(name: str) -> bool:
    """Whether a model computes a tensor itself, which only old files still hold."""
    return name.rpartition(".")[2] in ("position_ids", "inv_freq", "masked_bias")
