"""One tensor out of a safetensors artifact, by ranged reads: the rest of it stays where it is.

Bytes come as stored (little-endian, row-major); making an array of them is the caller's business.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tintray.errors import IntegrityError, NotFoundError, nearest

_GUESS = 32 << 10  # of one read: most headers are shorter
_LARGEST_HEADER = 100 << 20  # the limit of the safetensors format


class RangeReader(Protocol):
    """Where bytes come from: a blob (:func:`tintray.storage.blobs.read_blob`) or an artifact."""

    def __call__(self, start: int, stop: int) -> bytes:
        """Bytes ``start:stop``; fewer if the artifact ends before."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: ``dtype`` as safetensors names it (``F32``), byte range in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile(Mapping[str, TensorEntry]):
    """The index of a safetensors artifact; :meth:`read` gets one tensor's bytes."""

    def __init__(self, read: RangeReader, name: str):
        """Read the header through ``read``; ``name`` is what errors call the artifact."""
        self.name = name
        self._read = read
        self._entries, self.metadata = _parse(_header(read, name), name)

    def __getitem__(self, tensor: str) -> TensorEntry:
        if tensor not in self._entries:
            raise NotFoundError(
                f"{self.name} has no tensor '{tensor}'{nearest(tensor, self._entries)}"
            )
        return self._entries[tensor]

    def __contains__(self, tensor: object) -> bool:
        return tensor in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, tensor: str) -> bytes:
        """The bytes of one tensor; :class:`NotFoundError` with the nearest name if none."""
        entry = self[tensor]
        data = self._read(entry.start, entry.stop) if entry.stop > entry.start else b""
        if len(data) != entry.stop - entry.start:
            raise IntegrityError(
                f"{self.name} is truncated: tensor '{tensor}' should have "
                f"{entry.stop - entry.start:,} bytes, {len(data):,} are left; make it again"
            )
        return data


def _header(read: RangeReader, name: str) -> tuple[bytes, int]:
    """The JSON text of the header, and where the tensors begin."""
    head = read(0, _GUESS)
    size = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else _LARGEST_HEADER + 1
    if size > _LARGEST_HEADER:
        raise _no_safetensors(name)
    begin = 8 + size
    if begin > len(head):
        head += read(len(head), begin)
    return head[8:begin], begin


def _parse(header: tuple[bytes, int], name: str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    text, begin = header
    try:
        document = json.loads(text)
        metadata = document.pop("__metadata__", {})
        return {key: _entry(item, begin) for key, item in document.items()}, metadata
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_safetensors(name) from error


def _entry(item: dict[str, Any], begin: int) -> TensorEntry:
    first, last = item["data_offsets"]
    return TensorEntry(item["dtype"], tuple(item["shape"]), begin + first, begin + last)


def _no_safetensors(name: str) -> IntegrityError:
    return IntegrityError(
        f"{name} is no safetensors file, or is truncated or altered: its header cannot be read; "
        "make it again"
    )
