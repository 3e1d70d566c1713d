"""Merge whole checkpoints tensor by tensor, within a bound on memory.

Tensors are read in the order in which they lie in the base's files, merged and written in that
order. A method that is elementwise never needs more than a small piece of each checkpoint, and
several pieces are merged at once; the others need one tensor of each at a time, and the next one is
read meanwhile. What does not fit is refused before a byte is written.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product, repeat
from typing import Self

import torch
from torch import Tensor

from tintray.checkpoints.model_folder import ModelFolder
from tintray.checkpoints.safetensors_files import TensorInfo, is_rebuilt
from tintray.errors import CheckpointError, SpecError
from tintray.merging.apply import depths
from tintray.merging.declaration import Layer, rows
from tintray.merging.files.memory import FLOAT, MEMORY, PIECES, check_fits, needed_bytes
from tintray.merging.files.pieces import (
    MergedPiece,
    Piece,
    Scratch,
    check_equal,
    check_no_other,
    cut,
    one_by_one,
    several_at_once,
    stored,
)
from tintray.merging.files.tensor_files import DTYPES, TensorFiles
from tintray.merging.registry import Recipe

_COUNTERS = "num_batches_tracked"  # of training, which no model computes with
_WORKERS = 4  # at most: beyond that, memory and not arithmetic is what pieces wait for


@dataclass(frozen=True)
class Sources:
    """What a merge reads: the base, and for each task its expert, or its task vector.

    ``statistics`` are files with tensors of the same names, by kind: one per task, or one for all.
    """

    base: TensorFiles
    experts: Sequence[TensorFiles]
    tasks: tuple[str, ...]
    differences: bool = False  # the experts' files hold task vectors already
    statistics: Mapping[str, Sequence[TensorFiles]] = field(default_factory=dict)

    @classmethod
    def open(cls, base: ModelFolder, experts: Mapping[str, ModelFolder], stack: ExitStack) -> Self:
        """Open models whose tensors match, to be closed with ``stack``.

        Raises
        ------
        CheckpointError
            Naming the first tensor that an expert lacks, has in another shape, or has beside.
        """
        opened = stack.enter_context(TensorFiles.of(base, "the base"))
        files = []
        for task, expert in experts.items():
            files.append(stack.enter_context(TensorFiles.of(expert, f"expert '{task}'")))
            _check_match(opened, files[-1])
        return cls(opened, files, tuple(experts))


def _check_match(base: TensorFiles, expert: TensorFiles) -> None:
    for name, info in base.tensors.items():
        if is_rebuilt(name):
            continue
        if name not in expert.tensors:
            raise CheckpointError(
                f"{expert.role} lacks tensor '{name}', which {base.role} has with shape "
                f"{list(info.shape)}; expected an expert fine-tuned from this base"
            )
        found = expert.tensors[name]
        if found.shape != info.shape:
            raise CheckpointError(
                f"{expert.role}: tensor '{name}' has shape {list(found.shape)}; {base.role} has "
                f"{list(info.shape)}; expected an expert fine-tuned from this base, and of its "
                "shape: experts with heads of their own are merged by a job"
            )
        if found.floating != info.floating:
            raise CheckpointError(
                f"{expert.role}: tensor '{name}' is stored as {found.dtype}, {base.role} has it as "
                f"{info.dtype}; expected fractions, or whole numbers, in both"
            )
    check_no_other(expert.tensors, base.tensors, expert.role, base.role)


class Merging:
    """One recipe on opened checkpoints; checked when it is made, and ready to give any tensor.

    Parameters
    ----------
    memory
        Bytes that buffers, results and the method's own arrays may take together.
    at_once
        Pieces of a tensor that are merged at the same time at most; left out, one for each CPU.
    device
        Where the method computes. A piece is brought there, and what it makes of it back.

    Raises
    ------
    SpecError
        If the method merges fewer tasks, needs statistics that are not there, or needs more memory
        for the largest tensor.
    """

    def __init__(
        self,
        sources: Sources,
        recipe: Recipe,
        *,
        scale: float | None = None,
        memory: int = MEMORY,
        at_once: int | None = None,
        device: str = "cpu",
    ) -> None:
        self._sources, self._tasks = sources, len(sources.tasks)
        self._recipe, self._method = recipe, recipe.method
        self._method.check_tasks(self._tasks)
        self._scale = self._method.start(self._tasks) if scale is None else scale
        self._memory = memory
        self._at_most = at_once or min(_WORKERS, os.cpu_count() or 1)
        self._depths = depths(sources.base.tensors)
        self._measuring = threading.Lock()
        self._thresholds: dict[str, Tensor] = {}
        self._device = device
        self._weights = torch.full((self._tasks,), self._scale, device=device)
        for kind in self._method.needs:
            if kind not in sources.statistics:
                raise SpecError(
                    f"merge.method: '{recipe.name}' needs statistics '{kind}' of every expert over "
                    "its pool, which were not measured; run it as a job whose tasks have a pool, "
                    "or choose a method that needs no data"
                )
        for info in self.infos:
            if info.mergeable:
                needed = self._needed(info)
                check_fits(recipe.name, info.name, info.shape, self._tasks, needed, memory)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Who gets a backbone: one for all (``""``), or each task its own."""
        return self._sources.tasks if self._method.own is not None else ("",)

    @property
    def infos(self) -> list[TensorInfo]:
        """All tensors of the result, in the order in which they are written."""
        return list(self._sources.base.tensors.values())

    def pieces(
        self, names: Sequence[str] | None = None, totals: Tensor | None = None
    ) -> Iterator[MergedPiece]:
        """Piece after piece of the merged tensors, in order; all of them, or the named.

        ``totals`` are of the whole model; left out, they are summed before.

        Raises
        ------
        CheckpointError
            If the numbers of an expert are not finite.
        """
        pieces = self._cut(names)
        totals = self.totals() if totals is None else totals

        def merged(piece: Piece, layer: Layer | None) -> Tensor:
            if layer is None:
                return self._copied(piece)
            sources, method = self._sources, f"the method '{self._recipe.name}'"
            inputs = ((file, piece.info.name) for file in (sources.base, *sources.experts))
            return stored(self._merge(replace(layer, totals=totals)), piece.info, method, inputs)

        if not self._method.elementwise:
            yield from one_by_one(pieces, self._load, merged, self._both_fit)
            return
        scratch = Scratch()
        yield from several_at_once(
            pieces, lambda piece: merged(piece, self._load(piece, scratch)), self._pace[1]
        )

    def tensor(self, name: str, totals: Tensor | None = None) -> Tensor:
        """One merged tensor, [outputs, *shape]."""
        info = self._sources.base.tensors[name]
        nothing = torch.empty(len(self.outputs), 0, dtype=DTYPES[info.dtype])
        parts = [part for _, part in self.pieces([name], totals)]
        return torch.cat([nothing, *parts], dim=1).view(len(self.outputs), *info.shape)

    def totals(self, names: Sequence[str] | None = None) -> Tensor | None:
        """What the method sums over the model, here over ``names``: [K, m]."""
        rule, scratch = self._method.totals, Scratch()
        if rule is None:
            return None

        def summed(piece: Piece) -> Tensor:
            layer = self._load(piece, scratch)
            assert layer is not None  # only tensors that can be merged are asked
            found: Tensor = rule(layer.on(self._device))
            return found.cpu()

        total = torch.zeros(self._tasks, 1, dtype=torch.float64)
        pieces = [piece for piece in self._cut(names) if piece.info.mergeable]
        for _, part in several_at_once(pieces, summed, self._pace[1]):
            total = total + part
        return total

    # -- what fits ---------------------------------------------------------------------------

    def _needed(self, info: TensorInfo, size: int = PIECES[-1], workers: int = 1) -> int:
        """Bytes for a tensor with its statistics; ``size`` and ``workers`` are of pieces."""
        needed = needed_bytes(self._recipe, info.numel, self._tasks, size, workers)
        if not self._method.elementwise:
            return needed + self._statistics_bytes(info)
        files = sum(len(files) for files in self._sources.statistics.values())
        return needed + 2 * workers * files * min(info.numel, size) * FLOAT

    def _statistics_bytes(self, info: TensorInfo) -> int:
        files = [file for files in self._sources.statistics.values() for file in files]
        measured = [file.tensors[info.name] for file in files if info.name in file.tensors]
        return sum(found.numel * FLOAT for found in measured)

    def _both_fit(self, piece: Piece, following: Piece) -> bool:
        read = (self._tasks + 1) * following.numel * FLOAT
        measured = self._statistics_bytes(following.info)
        return self._needed(piece.info) + read + measured <= self._memory

    @cached_property
    def _pace(self) -> tuple[int, int]:
        """Numbers of a piece, and how many pieces at once: the most that fit into the memory."""
        mergeable = [info for info in self.infos if info.mergeable]
        if self._method.elementwise and mergeable:
            largest = max(mergeable, key=lambda info: info.numel)
            for size, workers in product(PIECES, range(self._at_most, 0, -1)):
                if self._needed(largest, size, workers) <= self._memory:
                    return size, workers
        return PIECES[-1], 1

    def _cut(self, names: Sequence[str] | None) -> list[Piece]:
        base = self._sources.base.tensors
        infos = [base[name] for name in (base if names is None else names)]
        size = self._pace[0] if self._method.elementwise else None
        return [p for info in infos for p in cut(info, size if info.mergeable else None)]

    # -- reading -----------------------------------------------------------------------------

    def _load(self, piece: Piece, scratch: Scratch | None = None) -> Layer | None:
        """The layer of a piece, read into memory that is used again or into its own.

        None of what cannot be merged.
        """
        info, sources = piece.info, self._sources
        if not info.mergeable:
            return None
        size = (self._tasks + 1, piece.numel)
        held = torch.empty(size) if scratch is None else scratch.take(*size)
        base = sources.base.read(info.name, held[0], piece.start)
        for number, row in enumerate(held[1:]):
            self._read_vector(number, info, row, base, piece.start)
        return Layer(
            info.name,
            base.view(piece.shape),
            held[1:].view(-1, *piece.shape),
            sources.tasks,
            self._depths[info.name],
            self._recipe.seed,
            thresholds=self._thresholds_of(info),
            statistics=self._statistics(piece),
        )

    def _statistics(self, piece: Piece) -> dict[str, Tensor]:
        """The statistics of a piece: cut as it is where they have its tensor's shape."""
        name, statistics = piece.info.name, {}
        for kind, files in self._sources.statistics.items():
            shapes = {file.tensors[name].shape if name in file.tensors else None for file in files}
            if None in shapes:
                continue
            if shapes == {piece.info.shape}:
                cut_ = [file.read(name, torch.empty(piece.numel), piece.start) for file in files]
                statistics[kind] = torch.stack(cut_).view(-1, *piece.shape)
            else:
                statistics[kind] = torch.stack([file.whole(name, torch.float32) for file in files])
        return statistics

    def _read_vector(
        self, number: int, info: TensorInfo, row: Tensor, base: Tensor, start: int = 0
    ) -> Tensor:
        """A task's vector, or a stretch of it like ``base`` [n], into ``row`` [n]."""
        self._sources.experts[number].read(info.name, row, start)
        return row if self._sources.differences else row.sub_(base)

    def _thresholds_of(self, info: TensorInfo) -> Tensor | None:
        """The method's thresholds [K, m] of a tensor, found by the first of its pieces for all."""
        rule, sources, scratch = self._method.thresholds, self._sources, Scratch()
        if rule is None:
            return None

        def measured(number: int, base: Tensor) -> Tensor:
            row = self._read_vector(number, info, scratch.take(1, info.numel)[0], base.view(-1))
            layer = Layer(info.name, base, row.view(1, *info.shape), (sources.tasks[number],))
            found: Tensor = rule(layer.on(self._device), **self._recipe.parameters)
            return found.cpu()

        with self._measuring:  # one tensor at a time, so that memory stays bounded
            if info.name not in self._thresholds:
                base = sources.base.whole(info.name, torch.float32)
                with ThreadPoolExecutor(self._pace[1]) as pool:  # as pieces are merged
                    each = pool.map(measured, range(self._tasks), repeat(base))
                    self._thresholds[info.name] = torch.cat(list(each))
        return self._thresholds[info.name]

    # -- merging -----------------------------------------------------------------------------

    def _merge(self, layer: Layer) -> Tensor:
        """θ [outputs, n] of one layer, in memory."""
        layer = layer.on(self._device)
        base = layer.base.reshape(-1)
        if self._method.own is not None:
            own = rows(self._method.own(layer, **self._recipe.parameters))
            return (base + self._scale * own).cpu()
        directions = self._method.directions(layer, **self._recipe.parameters)
        return torch.addmv(base, rows(directions).t(), self._weights)[None].cpu()

    def _copied(self, piece: Piece) -> Tensor:
        """The base's numbers, which every expert has too."""
        name, base = piece.info.name, self._sources.base
        tensor = base.whole(name).reshape(1, -1)
        own = self._sources.differences or is_rebuilt(name) or name.endswith(_COUNTERS)
        for expert in () if own else self._sources.experts:
            numbers = expert.whole(name).reshape(1, -1)
            check_equal(name, numbers, expert.role, tensor, base.role)
        return tensor.expand(len(self.outputs), -1)
