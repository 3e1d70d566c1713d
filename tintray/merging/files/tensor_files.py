"""Safetensors read and written a stretch at a time, through buffers that the caller owns.

A safetensors file is 8 bytes of header length, a JSON header, and the tensors' bytes. Reading with
``pread`` into one buffer that is used again costs no page faults and holds no more memory than the
buffer, which mapping a file does not promise.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from tintray.checkpoints.model_folder import ModelFolder
from tintray.checkpoints.safetensors_files import TensorInfo, merged_tables, tensors_in_open
from tintray.errors import CheckpointError, StorageError

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
        """The checkpoint in these files, which may be open already: they are closed with it."""
        self.role = role
        self._files = list(opened)
        tables = []
        try:
            for number, path in enumerate(files):
                if number == len(self._files):
                    self._files.append(_opened(path, role))
                tables.append(tensors_in_open(self._files[number], path, role, number=number))
            self.tensors = merged_tables(tables, role)
            _check_types(self.tensors.values(), role)
        except CheckpointError:
            self.close()
            raise

    @classmethod
    def of(cls, checkpoint: ModelFolder, role: str) -> Self:
        """The weights of a checkpoint, as they were when it was looked at."""
        with checkpoint.opened() as descriptors:
            return cls(checkpoint.weights, role, [os.dup(number) for number in descriptors])

    def read(self, name: str, out: Tensor, start: int = 0) -> Tensor:
        """Numbers ``start … start + len(out)`` of a tensor into ``out`` [n], converted if need be.

        ``out`` must be contiguous.
        """
        info = self.tensors[name]
        raw = out if out.dtype == DTYPES[info.dtype] else torch.empty(len(out), dtype=_dtype(info))
        view = _bytes_of(raw)
        position = info.offset + start * info.itemsize
        while len(view):
            count = os.preadv(self._files[info.file], [view], position)
            if count == 0:
                raise CheckpointError(f"{self.role}: tensor '{name}' ends before its last number")
            view, position = view[count:], position + count
        if raw is not out:
            out.copy_(raw)
        return out

    def whole(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor in memory of its own, in its own type unless ``dtype`` says otherwise."""
        info = self.tensors[name]
        out = torch.empty(info.numel, dtype=dtype or _dtype(info))
        return self.read(name, out).view(info.shape)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files:
            os.close(descriptor)
        self._files = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _opened(path: Path, role: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{role}: {path} cannot be opened ({error.strerror})") from error


def _check_types(tensors: Iterable[TensorInfo], role: str) -> None:
    for info in tensors:
        if info.dtype not in DTYPES:
            raise CheckpointError(
                f"{role}: tensor '{info.name}' is stored as {info.dtype}; expected one of "
                f"{', '.join(DTYPES)}, convert the checkpoint first"
            )


def _bytes_of(numbers: Tensor) -> memoryview:
    """The memory of a contiguous tensor [n] as bytes, to be read or written in place."""
    if len(numbers) == 0:
        return memoryview(b"")
    array: Any = numbers.view(torch.uint8).numpy()
    return memoryview(array)


def _dtype(info: TensorInfo) -> torch.dtype:
    return DTYPES[info.dtype]


class StackedTensors(Mapping[str, Tensor]):
    """The tensors of several checkpoints, [K, *shape] by name, read when they are asked for."""

    def __init__(self, files: Sequence[TensorFiles]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        return torch.stack([file.whole(name, torch.float32) for file in self._files])

    def __contains__(self, name: object) -> bool:
        return all(name in file.tensors for file in self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files[0].tensors)

    def __len__(self) -> int:
        return len(self._files[0].tensors)


class ShardedWriter:
    """Tensors written in order into one file, or into several of bounded size with an index.

    Parameters
    ----------
    folder
        Where to; it exists.
    stem
        ``model`` gives ``model.safetensors``, or ``model-00001-of-00002.safetensors`` … with
        ``model.safetensors.index.json``.
    tensors
        All that will be written, in order.
    shard_bytes
        No file holds more bytes of tensors, unless one tensor alone does.
    """

    def __init__(
        self, folder: Path, stem: str, tensors: Iterable[TensorInfo], shard_bytes: int
    ) -> None:
        self._folder = folder
        self._shards = _shards(tensors, shard_bytes)
        self._names = _file_names(stem, len(self._shards))
        self._stem = stem
        self._remaining = [sum(map(_bytes, shard)) for shard in self._shards]
        self._current = -1
        self._file: int | None = None
        self._next()

    @property
    def files(self) -> list[str]:
        """Names of the files, the index included."""
        index = [f"{self._stem}.safetensors.index.json"] if len(self._names) > 1 else []
        return [*self._names, *index]

    def write(self, numbers: Tensor) -> None:
        """The next stretch of the current tensor, in the tensor's own type."""
        view = _bytes_of(numbers.reshape(-1))
        try:
            while len(view):
                assert self._file is not None, "more numbers than were announced"
                piece = view[: self._remaining[self._current]]
                done = os.write(self._file, piece)
                self._remaining[self._current] -= done
                view = view[done:]
                if self._remaining[self._current] == 0:
                    self._next()
        except OSError as error:
            raise StorageError(
                f"{self._folder} cannot be written: {error.strerror}; nothing of the merge is kept"
            ) from error

    def finish(self) -> None:
        """Make all of it durable, and write the index where there is more than one file."""
        assert self._file is None, "fewer numbers than were announced"
        if len(self._names) > 1:
            placed = zip(self._names, self._shards, strict=True)
            weight_map = {info.name: name for name, shard in placed for info in shard}
            total = sum(_bytes(info) for shard in self._shards for info in shard)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            path = self._folder / f"{self._stem}.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def close(self) -> None:
        """Let go of the file, finished or not."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _next(self) -> None:
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None
        self._current += 1
        while self._current < len(self._shards):
            path = self._folder / self._names[self._current]
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            os.write(self._file, _header(self._shards[self._current]))
            if self._remaining[self._current]:
                return
            os.close(self._file)  # a shard of nothing but empty tensors
            self._file = None
            self._current += 1


def _bytes(info: TensorInfo) -> int:
    return info.numel * info.itemsize


def _shards(tensors: Iterable[TensorInfo], shard_bytes: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for info in tensors:
        if shards[-1] and size + _bytes(info) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(info)
        size += _bytes(info)
    return shards


def _file_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]


def _header(shard: Sequence[TensorInfo]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for info in shard:
        stop = position + _bytes(info)
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [position, stop],
        }
        position = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
