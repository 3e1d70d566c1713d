"""Safetensors written a stretch at a time, in files of bounded size with an index."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from tintray.checkpoints.safetensors_files import TensorInfo
from tintray.merging.files.tensor_files import bytes_of


class ShardedWriter:
    """Tensors written in order into ``model.safetensors``, or into files of bounded size.

    Those are ``model-00001-of-00002.safetensors`` …, with ``model.safetensors.index.json``.

    Parameters
    ----------
    folder
        Where to; it exists.
    tensors
        All that will be written, in order.
    shard_bytes
        No file holds more bytes of tensors, unless one tensor alone does.
    """

    def __init__(self, folder: Path, tensors: Iterable[TensorInfo], shard_bytes: int) -> None:
        shards = _shards(tensors, shard_bytes)
        names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
        files = names if len(shards) > 1 else ["model.safetensors"]
        self._folder, self._waiting = folder, list(zip(files, shards, strict=True))
        self._shards = dict(self._waiting)
        self._weight_map = {info.name: name for name, shard in self._waiting for info in shard}
        self._file: BinaryIO | None = None
        self._name, self._due = "", 0  # of that file, and its bytes in the end

    def write(self, info: TensorInfo, numbers: Tensor) -> None:
        """The next stretch of a tensor, in the tensor's own type."""
        while self._name != self._weight_map[info.name]:
            self._next()
        assert self._file is not None
        self._file.write(bytes_of(numbers.reshape(-1)))

    def finish(self) -> None:
        """Make all of it durable, and write the index where there is more than one file."""
        while self._waiting:  # tensors without a number
            self._next()
        self._end()
        if len(self._shards) > 1:
            total = sum(_bytes(info) for shard in self._shards.values() for info in shard)
            index = {"metadata": {"total_size": total}, "weight_map": self._weight_map}
            path = self._folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def close(self) -> None:
        """Let go of the file, finished or not."""
        if self._file is not None:
            self._file.close()

    def _next(self) -> None:
        self._end()
        self._name, shard = self._waiting.pop(0)
        header = _header(shard)
        self._due = len(header) + sum(map(_bytes, shard))
        self._file = (self._folder / self._name).open("xb")
        self._file.write(header)

    def _end(self) -> None:
        if self._file is not None:
            assert self._file.tell() == self._due, "other numbers than were announced"
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def _bytes(info: TensorInfo) -> int:
    return info.numel * info.itemsize


def _shards(tensors: Iterable[TensorInfo], shard_bytes: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for info in tensors:
        size += _bytes(info)
        if shards[-1] and size > shard_bytes:
            shards.append([])
            size = _bytes(info)
        shards[-1].append(info)
    return shards


def _header(shard: Sequence[TensorInfo]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for info in shard:
        start, stop = stop, stop + _bytes(info)
        span = [start, stop]
        entries[info.name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": span}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
