"""Safetensors read a stretch at a time, into buffers that the caller owns.

A safetensors file is 8 bytes of header length, a JSON header, and the tensors' bytes. Reading with
``pread`` into one buffer that is used again costs no page faults and holds no more memory than the
buffer, which mapping a file does not promise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tintray.checkpoints.model_folder import ModelFolder
from tintray.checkpoints.safetensors_files import merged_tables, tensors_in_open
from tintray.errors import CheckpointError
from tintray.files import open_regular
from tintray.vectors.task_vectors import DOWN, UP

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types of number that are merged, or taken over from the base."""


class TensorFiles:
    """The tensors of one checkpoint, in the order in which they lie in its files.

    Raises
    ------
    CheckpointError
        If a file is not safetensors, two files hold one tensor, or a type of number cannot be
        merged.
    """

    def __init__(self, files: Sequence[Path], role: str, opened: Sequence[int] = ()) -> None:
        """The model in these files, which may be open already: they are closed with it."""
        self.role = role
        self._files = list(opened)
        try:
            for path in files[len(opened) :]:
                with open_regular(path) as file:
                    self._files.append(os.dup(file.fileno()))
            each = enumerate(zip(self._files, files, strict=True))
            tables = [tensors_in_open(fd, path, role, number=n) for n, (fd, path) in each]
            self.tensors = merged_tables(tables, role)
            for info in self.tensors.values():
                if info.dtype not in DTYPES:
                    raise CheckpointError(
                        f"{role}: tensor '{info.name}' is stored as {info.dtype}; expected one of "
                        f"{', '.join(DTYPES)}, convert the checkpoint first"
                    )
        except OSError as error:
            self.close()
            said = f"{error.filename} cannot be opened ({error.strerror})"
            raise CheckpointError(f"{role}: {said}") from error
        except CheckpointError:
            self.close()
            raise

    @classmethod
    def of(cls, model: ModelFolder, role: str) -> Self:
        """The weights of a checkpoint, as they were when it was looked at."""
        with model.opened() as files:
            return cls(model.weights, role, [os.dup(file.fileno()) for file in files])

    def read(self, name: str, out: Tensor, start: int = 0) -> Tensor:
        """Numbers ``start … start + len(out)`` of a tensor into ``out`` [n], converted if need be.

        ``out`` must be contiguous.
        """
        info = self.tensors[name]
        dtype = DTYPES[info.dtype]
        raw = out if out.dtype == dtype else torch.empty(len(out), dtype=dtype)
        view = bytes_of(raw)
        position = info.offset + start * info.itemsize
        while len(view):
            count = os.preadv(self._files[info.file], [view], position)
            if count == 0:
                raise CheckpointError(f"{self.role}: tensor '{name}' ends before its last number")
            view, position = view[count:], position + count
        return out if raw is out else out.copy_(raw)

    def whole(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor in memory of its own, in its own type unless ``dtype`` says otherwise."""
        info = self.tensors[name]
        out = torch.empty(info.numel, dtype=dtype or DTYPES[info.dtype])
        return self.read(name, out).view(info.shape)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files:
            os.close(descriptor)
        self._files = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bytes_of(numbers: Tensor) -> memoryview:
    """The memory of a contiguous tensor [n] as bytes, to be read or written in place."""
    array: Any = numbers.view(torch.uint8).numpy()
    return memoryview(array)


def stacked(files: Mapping[str, Sequence[TensorFiles]], name: str) -> dict[str, Tensor]:
    """A tensor of several checkpoints [K, *shape], of each kind of files that all have it."""
    return {
        kind: torch.stack([file.whole(name, torch.float32) for file in of])
        for kind, of in files.items()
        if all(name in file.tensors for file in of)
    }


class VectorFiles(TensorFiles):
    """A task vector as ``task_vectors.pack`` names it, given as one tensor per name of the base.

    Products are multiplied out, only where they are read; what has not changed is zero.
    """

    def read(self, name: str, out: Tensor, start: int = 0) -> Tensor:
        """Numbers ``start … start + len(out)`` of a tensor into ``out`` [n]."""
        if name in self.tensors:
            return super().read(name, out, start)
        if name + UP not in self.tensors:
            return out.zero_()
        up, down = self.whole(name + UP, torch.float32), self.whole(name + DOWN, torch.float32)
        first, skipped = divmod(start, down.shape[1])
        last = -(-(start + len(out)) // down.shape[1])
        return out.copy_((up[first:last] @ down).flatten()[skipped : skipped + len(out)])
