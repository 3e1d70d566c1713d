"""How a merge on disk goes through its tensors: piece by piece, within a bound on memory.

A *piece* is a stretch of one tensor, or all of it. Whoever merges says how a piece is read, and
what becomes of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from tintray.checkpoints.safetensors_files import TensorInfo, is_rebuilt
from tintray.errors import CheckpointError
from tintray.merging.files.memory import WAITING
from tintray.merging.files.tensor_files import DTYPES, TensorFiles

T = TypeVar("T")


MergedPiece = tuple[TensorInfo, Tensor]
"""Merged numbers [outputs, n] in the tensor's own type, valid until the next piece is asked for."""


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
) -> Iterator[MergedPiece]:
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
) -> Iterator[MergedPiece]:
    """Merge so many pieces at the same time; they come in order, a few waiting for their turn."""
    window: deque[Future[MergedPiece]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for piece in pieces:
            if len(window) == workers + WAITING:
                yield window.popleft().result()
            window.append(pool.submit(lambda piece: (piece.info, merge(piece)), piece))
        while window:
            yield window.popleft().result()


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
    method: str,
    inputs: Iterable[tuple[TensorFiles, str]],
    read_as: torch.dtype = torch.float32,
) -> Tensor:
    """Merged numbers in the type of their tensor, which 16 bits may overflow.

    ``inputs`` are the tensors they were merged from, by file and name, that were read ``read_as``.

    Raises
    ------
    CheckpointError
        Where a number is NaN or infinite then: naming the first input that is at fault, or none.
    """
    converted = merged.to(DTYPES[info.dtype])
    precise = torch.float64 if merged.dtype == torch.float64 else torch.float32
    if torch.isfinite(converted.sum(dtype=precise)):
        return converted
    for file, name in inputs:
        tensor = file.read(name, torch.empty(info.numel, dtype=read_as))
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CheckpointError(
                f"{file.role}: tensor '{name}' has {bad:,} of {info.numel:,} values that are NaN "
                f"or infinite as {str(read_as).removeprefix('torch.')}; expected finite weights, "
                "was the training stable?"
            )
    raise CheckpointError(
        f"{method} gives values for tensor '{info.name}' that are not finite as {info.dtype}; "
        "lower its scale, or look at its weights, which may add up to 0, and at the result's type"
    )


def check_equal(name: str, tensor: Tensor, role: str, first: Tensor, first_role: str) -> None:
    """Refuse whole numbers in which two models differ: there is no mean of them."""
    if not torch.equal(tensor, first):
        raise CheckpointError(
            f"{role}: tensor '{name}' holds whole numbers, and others than {first_role}; they "
            "cannot be merged: convert quantised weights to floating point first"
        )


def check_no_other(
    tensors: Iterable[str], known: Iterable[str], role: str, first_role: str
) -> None:
    """Refuse a tensor that the first model lacks: nothing of a model is left out unsaid."""
    extra = sorted(name for name in set(tensors).difference(known) if not is_rebuilt(name))
    if extra:
        raise CheckpointError(
            f"{role} has tensor '{extra[0]}', which {first_role} lacks; expected models of one "
            "architecture, such as experts fine-tuned from this base"
        )
