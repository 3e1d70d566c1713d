"""Safetensors files as this project opens them: the safetensors library checks every header.

A file is 8 bytes of header length, a JSON header, and the tensors' bytes. The library refuses
headers whose spans leave the file, cross each other, leave gaps or do not fit their shapes; what
it accepts lies without gaps in the order that it tells, so that order and sizes give the offsets.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tintray.errors import CheckpointError

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "C64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
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
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(path, role, error) from error
    try:
        return tensors_in_open(descriptor, path, role, number=number)
    finally:
        os.close(descriptor)


def tensors_in_open(descriptor: int, path: Path, role: str, *, number: int = 0) -> list[TensorInfo]:
    """The same of an open file, whatever lies at ``path`` by now; errors name ``path``."""
    infos = []
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "it is not a regular file")
        offset = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
        with safe_open(f"/dev/fd/{descriptor}", framework="np") as file:
            for name in file.offset_keys():
                entry = file.get_slice(name)
                info = TensorInfo(
                    name, str(entry.get_dtype()), tuple(entry.get_shape()), number, offset
                )
                if info.dtype not in ITEM_BYTES:
                    raise CheckpointError(
                        f"{role}: tensor '{name}' in {path} is stored as {info.dtype}; expected "
                        f"one of {', '.join(ITEM_BYTES)}, convert the checkpoint first"
                    )
                offset += info.numel * info.itemsize
                infos.append(info)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, role, error) from error
    return infos


def _unreadable(path: Path, role: str, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
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
    return name.rpartition(".")[2] in ("position_ids", "inv_freq")
