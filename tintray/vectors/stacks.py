"""The K task vectors of one tensor: kept in a format, mixed by weights, dotted with a gradient.

A stack is cut into *blocks* of whole channels (rows of a weight matrix), each [K, c] and small
enough for a core's cache. Every format gives a block back as the same float32 array in memory of
its own, so that what is computed from it depends on the numbers alone: not on whether they lie in
memory or in a mapped file, nor on how the tensors are spread over machines.

Formats: ``f32`` and ``bf16`` as they are; ``int8`` and ``int4`` with one scale per task and
channel, symmetric. Tensors of one dimension (biases, norms) stay float32: they are few numbers and
matter. Rows in float64 are computed in float64 where the format is ``f32``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tintray.numerics.choices import Format
from tintray.numerics.low_rank import LowRank

BITS: dict[Format, float] = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4}
"""Bits of a number in each format; scales add 32 per task and channel."""

_BLOCK = 2**18  # numbers; 1 MiB of float32, which stays in a core's second-level cache
_BLOCK_ELSEWHERE = 2**24  # on a GPU, where every block costs the starts of a few kernels
CLIPS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6)
"""Shares of the largest value that int4 may clip to."""


Row = Tensor | LowRank | None
"""One task's vector of one tensor: its numbers, a product, or nothing where it is zero."""


class Stack(ABC):
    """T restricted to one tensor of n numbers: [K, n] in some format."""

    @abstractmethod
    def mix(self, weights: Tensor) -> Tensor:
        """Σₖ λₖ τₖ [n] for weights λ [K]."""

    def add_mixed(self, base: Tensor, weights: Tensor, out: Tensor) -> None:
        """Write θ₀ + Σₖ λₖ τₖ [n] into ``out``."""
        torch.add(base, self.mix(weights), out=out)

    @abstractmethod
    def dots(self, gradient: Tensor) -> Tensor:
        """⟨τₖ, G⟩ [K] for a gradient G [n]."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Every row in float32: [K, n]."""

    def blocks(self) -> Iterator[Tensor]:
        """Every row in consecutive blocks [K, c]; each holds until the next is asked for."""
        yield self.dense()

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory that it holds; what is mapped from a file does not count."""


@dataclass(frozen=True)
class _Coded:
    """A block in its format, and how to write it into float32 [K, c]."""

    tensors: tuple[Tensor, ...]
    decode: Callable[..., Tensor]  # (out [K, c], *tensors) -> [K, c]


class _BlockStack(Stack):
    """A stack that is cut into blocks at ``edges``; subclasses say where those come from."""

    def __init__(
        self, tasks: int, edges: Sequence[int], device: str, dtype: torch.dtype = torch.float32
    ) -> None:
        self._tasks = tasks
        self._edges = edges
        self._options: Any = {"device": device, "dtype": dtype}

    @abstractmethod
    def _block(self, number: int, out: Tensor) -> Tensor:
        """Block ``number`` as float32 [K, c]: written into ``out``, or an array that is there."""

    def mix(self, weights: Tensor) -> Tensor:
        mixed = torch.empty(self._edges[-1], **self._options)
        for stretch, block in self._each():
            torch.mv(block.t(), weights, out=mixed[stretch])
        return mixed

    def add_mixed(self, base: Tensor, weights: Tensor, out: Tensor) -> None:
        if not base.is_cuda or base.dtype != self._options["dtype"]:
            super().add_mixed(base, weights, out)
            return
        for stretch, block in self._each():  # a kernel for each, where mixing takes three
            torch.addmv(base[stretch], block.t(), weights, out=out[stretch])

    def dots(self, gradient: Tensor) -> Tensor:
        if gradient.is_cuda and len(self._edges) == 2:  # one block: a kernel
            return torch.mv(next(self._each())[1], gradient)
        total = gradient.new_zeros(self._tasks, dtype=torch.float64)
        for stretch, block in self._each():
            total += torch.mv(block, gradient[stretch])
        return total.to(gradient.dtype)

    def dense(self) -> Tensor:
        whole = torch.empty(self._tasks, self._edges[-1], **self._options)
        for stretch, block in self._each():
            whole[:, stretch] = block
        return whole

    def blocks(self) -> Iterator[Tensor]:
        return (block for _, block in self._each())

    def _each(self) -> Iterator[tuple[slice, Tensor]]:
        """Every block and where it lies; it holds until the next one is asked for."""
        widest = max((stop - start for start, stop in pairwise(self._edges)), default=0)
        scratch = torch.empty(self._tasks * widest, **self._options)
        for number, (start, stop) in enumerate(pairwise(self._edges)):
            out = scratch[: self._tasks * (stop - start)].view(-1, stop - start)
            yield slice(start, stop), self._block(number, out)


class _InMemoryStack(_BlockStack):
    """Blocks in memory, each in its format."""

    def __init__(
        self,
        tasks: int,
        edges: Sequence[int],
        blocks: Sequence[_Coded],
        device: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(tasks, edges, device, dtype)
        self._blocks = blocks

    def _block(self, number: int, out: Tensor) -> Tensor:
        block = self._blocks[number]
        return block.decode(out, *block.tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for block in self._blocks for tensor in block.tensors)


class _MappedStack(_BlockStack):
    """Rows that stay in mapped files; the system reads them as they are asked for."""

    def __init__(self, edges: Sequence[int], rows: Sequence[Tensor | None]) -> None:
        super().__init__(len(rows), edges, "cpu")
        self._rows = rows

    def _block(self, number: int, out: Tensor) -> Tensor:
        return _gathered(out, self._rows, slice(self._edges[number], self._edges[number + 1]))

    @property
    def nbytes(self) -> int:
        return 0


class _LowRankStack(Stack):
    """A stack in which some tasks' rows are products; the others are a stack of their own."""

    def __init__(self, tasks: int, products: dict[int, LowRank], rest: Stack, device: str) -> None:
        self._tasks = tasks
        self._rest = rest
        self._others = torch.tensor([k for k in range(tasks) if k not in products]).to(device)
        owner = [k for k, product in products.items() for _ in range(product.up.shape[1])]
        self._owner = torch.tensor(owner).to(device)
        self._up = torch.cat([p.up.float() for p in products.values()], dim=1).to(device)
        self._down = torch.cat([p.down.float() for p in products.values()]).to(device)

    def mix(self, weights: Tensor) -> Tensor:
        mixed = ((self._up * weights[self._owner]) @ self._down).flatten()
        return mixed + self._rest.mix(weights[self._others]) if len(self._others) else mixed

    def dots(self, gradient: Tensor) -> Tensor:
        """⟨BA, G⟩ = ⟨A, BᵀG⟩: the product is never written out."""
        total = gradient.new_zeros(self._tasks)
        if len(self._others):
            total[self._others] = self._rest.dots(gradient)
        pulled = self._up.t() @ gradient.view(len(self._up), -1)
        return total.index_add_(0, self._owner, (pulled * self._down).sum(1))

    def dense(self) -> Tensor:
        numel = len(self._up) * self._down.shape[1]
        whole = torch.zeros(self._tasks, numel, device=self._up.device)
        if len(self._others):
            whole[self._others] = self._rest.dense()
        for task in sorted(set(self._owner.tolist())):
            mine = self._owner == task
            whole[task] = (self._up[:, mine] @ self._down[mine]).flatten()
        return whole

    @property
    def nbytes(self) -> int:
        return self._rest.nbytes + self._up.nbytes + self._down.nbytes


def make_stack(
    rows: Sequence[Row],
    shape: Sequence[int],
    format: Format = "f32",
    *,
    mapped: bool = False,
    device: str = "cpu",
) -> Stack:
    """Keep the K rows of a tensor in a format; no more than a block is in float32 beside it.

    Rows may lie elsewhere: a block is copied to where the stack lies, and gets its format there.

    Parameters
    ----------
    rows
        A task's numbers each: a tensor of ``shape`` or flat, a ``LowRank``, or None for zeros.
    mapped
        Keep the rows themselves, which lie in mapped files, instead of a copy; ``f32`` in memory
        only, other devices have their own copy.
    device
        Where the stack lies and computes.
    """
    size = torch.Size(shape)
    products = {k: row for k, row in enumerate(rows) if isinstance(row, LowRank)}
    if products:
        others = [row for row in rows if not isinstance(row, LowRank)]
        rest = make_stack(others, shape, format, mapped=mapped, device=device)
        return _LowRankStack(len(rows), products, rest, device)
    flat = [row.reshape(-1) if isinstance(row, Tensor) else None for row in rows]
    channel = size[1:].numel() if len(size) > 1 else size.numel()
    edges = _edges(size.numel(), channel, len(rows), device)
    stored: Format = "f32" if len(size) < 2 else format
    if mapped and stored == "f32" and device == "cpu":
        return _MappedStack(edges, flat)
    double = stored == "f32" and any(r is not None and r.dtype == torch.float64 for r in flat)
    dtype = torch.float64 if double else torch.float32
    encode = _encoder(stored, channel)
    blocks = []
    for start, stop in pairwise(edges):
        block = torch.empty(len(rows), stop - start, dtype=dtype, device=device)
        blocks.append(encode(_gathered(block, flat, slice(start, stop))))
    return _InMemoryStack(len(rows), edges, blocks, device, dtype)


def stack_bytes(shape: Sequence[int], tasks: int, format: Format) -> int:
    """What ``make_stack`` holds for so many dense rows of a tensor, in bytes."""
    size = torch.Size(shape)
    if len(size) < 2:
        return 4 * tasks * size.numel()
    scales = 4 * tasks * size[0] if format in ("int8", "int4") else 0
    return int(tasks * size.numel() * BITS[format] / 8) + scales


def _edges(numel: int, channel: int, tasks: int, device: str) -> list[int]:
    """Where blocks begin and end: whole channels, about a block of numbers over all tasks.

    A tensor of one dimension is one channel; it is cut anywhere.
    """
    block = _BLOCK if device == "cpu" else _BLOCK_ELSEWHERE
    width = max(1, block // max(1, tasks))
    if channel < numel:
        width = channel * max(1, width // channel)
    return [*range(0, numel, width), numel] if numel else [0]


# --- formats -------------------------------------------------------------------------------------


def _encoder(format: Format, channel: int) -> Callable[[Tensor], _Coded]:
    match format:
        case "f32":
            return lambda block: _Coded((block,), _itself)
        case "bf16":
            return lambda block: _Coded((block.bfloat16(),), _converted)
        case "int8":
            return partial(_to_int8, channel=channel)
        case "int4":
            return partial(_to_int4, channel=channel)


def _itself(out: Tensor, block: Tensor) -> Tensor:
    return block


def _converted(out: Tensor, block: Tensor) -> Tensor:
    return out.copy_(block)


def _gathered(out: Tensor, rows: Sequence[Tensor | None], stretch: slice) -> Tensor:
    for mine, row in zip(out, rows, strict=True):
        if row is None:
            mine.zero_()
        else:
            mine.copy_(row[stretch])
    return out


def _to_int8(block: Tensor, channel: int) -> _Coded:
    values, scales = quantised(block.view(len(block), -1, channel), 127, (1.0,))
    return _Coded((values.view(block.shape), scales), _from_int8)


def _from_int8(out: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    out.copy_(values).view(*scales.shape[:2], -1).mul_(scales)
    return out


def _to_int4(block: Tensor, channel: int) -> _Coded:
    """Two numbers to a byte: the first half of the block's columns low, the second half high."""
    values, scales = quantised(block.view(len(block), -1, channel), 7, CLIPS)
    flat = values.view(block.shape)
    half = (flat.shape[1] + 1) // 2
    packed = torch.zeros(len(flat), half, dtype=torch.uint8, device=flat.device)
    packed += (flat[:, :half] + 8).to(torch.uint8)
    packed[:, : flat.shape[1] - half] += (flat[:, half:] + 8).to(torch.uint8) * 16
    return _Coded((packed, scales), _from_int4)


def _from_int4(out: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    half = packed.shape[1]
    out[:, :half].copy_(packed & 15)
    out[:, half:].copy_((packed >> 4)[:, : out.shape[1] - half])
    out.sub_(8).view(*scales.shape[:2], -1).mul_(scales)
    return out


def quantised(
    channels: Tensor, most: int, clips: Sequence[float], *, stable: bool = False
) -> tuple[Tensor, Tensor]:
    """Symmetric integers −most … most of [K, m, w], and their scales [K, m, 1].

    Of several clips, each channel takes the one with the smallest squared error. ``stable`` scales
    have 16 significant bits: most times one is exact, so that what was rounded before is found
    again, number by number and scale by scale.
    """
    largest = channels.abs().amax(-1, keepdim=True)
    best = torch.full_like(largest, torch.inf)
    values = torch.zeros_like(channels)
    scales = torch.ones_like(largest)
    for clip in clips:
        scale = torch.where(largest > 0, largest * clip / most, 1.0)
        if stable:
            scale = (scale.view(torch.int32) & -256).view(torch.float32)
            scale = torch.where(scale > 0, scale, 1.0)
        rounded = (channels / scale).round_().clamp_(-most, most)
        error = (rounded * scale - channels).square().sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        values = torch.where(better, rounded, values)
        scales = torch.where(better, scale, scales)
    return values.to(torch.int8), scales
