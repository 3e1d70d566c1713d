"""Safetensors written a stretch at a time, in files of bounded size with an index."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from tintray.checkpoints.safetensors_files import TensorInfo
from tintray.errors import StorageError
from tintray.merging.files.tensor_files import bytes_of


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
        view = bytes_of(numbers.reshape(-1))
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
