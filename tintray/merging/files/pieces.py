"""How a merge on disk goes through its tensors: piece by piece, within a bound on memory.

A *piece* is a stretch of one tensor, or all of it. Whoever merges says how a piece is read, and
what becomes of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from tintray.checkpoints.safetensors_files import TensorInfo
from tintray.errors import CheckpointError
from tintray.merging.files.memory import WAITING
from tintray.merging.files.tensor_files import DTYPES

T = TypeVar("T")


class MergedTensors(Protocol):
    """A merge that is ready to be written: tensors in order, a piece at a time."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The folders that are written, below the result's; ``""`` is itself."""

    @property
    def infos(self) -> list[TensorInfo]:
        """All tensors of the result, in the order in which they are written."""

    def pieces(self) -> Iterator[tuple[TensorInfo, Tensor]]:
        """Piece after piece: numbers [outputs, n] in the tensor's own type.

        They are valid until the next piece is asked for.
        """


@dataclass(frozen=True)
class Piece:
    """The numbers ``start`` to ``stop`` of one tensor of the result."""

    info: TensorInfo
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return self.stop - self.start

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's own shape if it is all of the tensor, else [n]."""
        return self.info.shape if self.numel == self.info.numel else (self.numel,)


def cut(info: TensorInfo, size: int | None) -> list[Piece]:
    """A tensor in pieces of ``size`` numbers, or whole; an empty one has none."""
    if info.numel == 0:
        return []
    edges = [*range(0, info.numel, size or info.numel), info.numel]
    return [Piece(info, *pair) for pair in pairwise(edges)]


def one_by_one(
    pieces: Sequence[Piece],
    read: Callable[[Piece], T],
    merge: Callable[[Piece, T], Tensor],
    both_fit: Callable[[Piece, Piece], bool],
) -> Iterator[tuple[TensorInfo, Tensor]]:
    """Merge a piece after the other; the next one is read meanwhile, where ``both_fit``."""
    ahead: Future[T] | None = None
    with ThreadPoolExecutor(1) as reader:
        for piece, following in zip(pieces, [*pieces[1:], None], strict=False):
            given = read(piece) if ahead is None else ahead.result()
            ahead = None
            if following is not None and both_fit(piece, following):
                ahead = reader.submit(read, following)
            merged = merge(piece, given)
            del given  # a large tensor's inputs must go before the next one's come
            yield piece.info, merged
            del merged


def several_at_once(
    pieces: Sequence[Piece], merge: Callable[[Piece], Tensor], workers: int
) -> Iterator[tuple[TensorInfo, Tensor]]:
    """Merge so many pieces at the same time; they come in order, a few waiting for their turn."""
    window: deque[tuple[Piece, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for piece in pieces:
            if len(window) == workers + WAITING:
                first, done = window.popleft()
                yield first.info, done.result()
            window.append((piece, pool.submit(merge, piece)))
        while window:
            first, done = window.popleft()
            yield first.info, done.result()


class Scratch(threading.local):
    """An array for each thread, used again for every piece; it grows to the largest."""

    _held = torch.empty(0)

    def take(self, rows: int, columns: int) -> Tensor:
        """[rows, columns] of this thread's array, with whatever numbers are in it."""
        if len(self._held) < rows * columns:
            self._held = torch.empty(0)  # the old one goes before the new one comes
            self._held = torch.empty(rows * columns)
        return self._held[: rows * columns].view(rows, columns)


def stored(
    merged: Tensor,
    info: TensorInfo,
    not_finite: Callable[[], CheckpointError],
    precise: torch.dtype | None = None,
) -> Tensor:
    """Merged numbers in the type of their tensor, which 16 bits may overflow.

    Raises
    ------
    CheckpointError
        What ``not_finite`` gives, where a number is NaN or infinite then.
    """
    converted = merged.to(DTYPES[info.dtype])
    if not torch.isfinite(converted.sum(dtype=precise or merged.dtype)):
        raise not_finite()
    return converted


def check_equal(name: str, tensor: Tensor, role: str, first: Tensor, first_role: str) -> None:
    """Refuse whole numbers in which two models differ: there is no mean of them."""
    if not torch.equal(tensor, first):
        raise CheckpointError(
            f"{role}: tensor '{name}' holds whole numbers, and others than {first_role}; they "
            "cannot be merged: convert quantised weights to floating point first"
        )
