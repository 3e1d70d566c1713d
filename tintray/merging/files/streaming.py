"""Merge whole checkpoints tensor by tensor, within a bound on memory.

Tensors are read in the order in which they lie in the base's files, merged and written in that
order. A method that is elementwise never needs more than a small piece of each checkpoint; the
others need one tensor of each at a time. What does not fit is refused before a byte is written.
Several pieces are merged at once while finished ones are written; where whole tensors are needed,
the next one is read meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from tintray.checkpoints.safetensors_files import TensorInfo, is_rebuilt
from tintray.errors import CheckpointError, SpecError
from tintray.merging.apply import depths
from tintray.merging.declaration import Layer
from tintray.merging.files.memory import FLOAT, MEMORY, PIECES, WAITING, check_fits, needed_bytes
from tintray.merging.files.sources import Sources
from tintray.merging.files.tensor_files import DTYPES
from tintray.merging.registry import Recipe

_COUNTERS = "num_batches_tracked"  # of training, which no model computes with
_WORKERS = 4  # at most: beyond that, memory and not arithmetic is what pieces wait for


@dataclass(frozen=True)
class _Piece:
    """A stretch of one tensor."""

    info: TensorInfo
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start

    @property
    def whole(self) -> bool:
        return self.numel == self.info.numel


class Merging:
    """One recipe on opened checkpoints; checked when it is made, and ready to give any tensor.

    Parameters
    ----------
    memory
        Bytes that buffers, results and the method's own arrays may take together.
    at_once
        Pieces of a tensor that are merged at the same time at most; left out, one for each CPU.

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
    ) -> None:
        self._sources = sources
        self._at_most = at_once or min(_WORKERS, os.cpu_count() or 1)
        self._recipe = recipe
        self._method = recipe.method
        self._method.check_tasks(len(sources.tasks))
        self._scale = self._method.start(len(sources.tasks)) if scale is None else scale
        self._memory = memory
        self._depths = depths(sources.base.tensors)
        self._measuring = threading.Lock()
        self._found_thresholds: dict[str, Tensor] = {}
        self._check_statistics()
        for info in sources.base.tensors.values():
            if info.mergeable:
                needed = self._needed(info)
                check_fits(recipe, info.name, info.shape, len(sources.tasks), needed, memory)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Who gets a backbone: one for all (``""``), or each task its own."""
        return self._sources.tasks if self._method.own is not None else ("",)

    @property
    def infos(self) -> list[TensorInfo]:
        """All tensors of the result, in the order in which they are written."""
        return list(self._sources.base.tensors.values())

    def pieces(self, names: Sequence[str] | None = None) -> Iterator[tuple[TensorInfo, Tensor]]:
        """Stretch after stretch of the merged tensors, in order: info and numbers [outputs, n].

        Numbers are in the tensor's own type, and valid until the next stretch is asked for.

        Raises
        ------
        CheckpointError
            If the numbers of an expert are not finite.
        """
        base = self._sources.base
        infos = [base.tensors[name] for name in (base.tensors if names is None else names)]
        pieces = [piece for info in infos for piece in self._cut(info)]
        totals = self.totals() if self._totals is None else self._totals

        def merged(piece: _Piece, layer: Layer | None) -> Tensor:
            if layer is None:
                return self._copied(piece)
            return self._stored(piece, self._merge(replace(layer, totals=totals)))

        if self._method.elementwise:
            for piece, found in self._at_once(pieces, merged):
                yield piece.info, found
            return
        with ThreadPoolExecutor(1) as reader:
            for piece, layer in self._read_ahead(pieces, reader):
                found = merged(piece, layer)
                del layer  # a large tensor's experts must go before the next one's come
                yield piece.info, found
                del found

    def tensor(self, name: str) -> Tensor:
        """One merged tensor, [outputs, *shape]."""
        info = self._sources.base.tensors[name]
        nothing = torch.empty(len(self.outputs), 0, dtype=DTYPES[info.dtype])
        parts = [part for _, part in self.pieces([name])]
        return torch.cat([nothing, *parts], dim=1).view(len(self.outputs), *info.shape)

    def totals(self, names: Sequence[str] | None = None) -> Tensor | None:
        """What the method sums over the model, here over ``names``: [K, m]."""
        rule = self._method.totals
        if rule is None:
            return None
        base = self._sources.base
        infos = [base.tensors[name] for name in (base.tensors if names is None else names)]
        pieces = [piece for info in infos if info.mergeable for piece in self._cut(info)]
        total = torch.zeros(len(self._sources.tasks), 1, dtype=torch.float64)

        def summed(_: _Piece, layer: Layer | None) -> Tensor:
            assert layer is not None
            found: Tensor = rule(layer)
            return found

        for _, part in self._at_once(pieces, summed):
            total = total + part
        return total

    def given(self, totals: Tensor) -> None:
        """Use totals that were summed elsewhere."""
        self._totals = totals

    _totals: Tensor | None = None

    # -- what fits ---------------------------------------------------------------------------

    def _check_statistics(self) -> None:
        for kind in self._method.needs:
            if kind not in self._sources.statistics:
                raise SpecError(
                    f"merge.method: '{self._recipe.name}' needs statistics '{kind}' of every "
                    "expert over its pool, which were not measured; run it as a job whose tasks "
                    "have an adaptation pool, or choose a method that needs no data"
                )

    def _needed(self, info: TensorInfo) -> int:
        """Bytes for one tensor at least, with its statistics."""
        if self._method.elementwise:
            return self._needed_by_pieces(info.numel, PIECES[-1], 1)
        tasks = len(self._sources.tasks)
        return needed_bytes(self._recipe, info.numel, tasks) + self._statistics_bytes(info)

    def _needed_by_pieces(self, numel: int, size: int, workers: int) -> int:
        """Bytes for a tensor that is merged in pieces of ``size`` numbers, so many at once."""
        files = sum(len(files) for files in self._sources.statistics.values())
        measured = 2 * workers * files * min(numel, size) * FLOAT
        tasks = len(self._sources.tasks)
        return measured + needed_bytes(self._recipe, numel, tasks, size, workers)

    def _statistics_bytes(self, info: TensorInfo) -> int:
        return sum(
            found.numel * FLOAT
            for files in self._sources.statistics.values()
            for file in files
            if (found := file.tensors.get(info.name)) is not None
        )

    def _cut(self, info: TensorInfo) -> list[_Piece]:
        if info.numel == 0:
            return []
        if not self._method.elementwise or not info.mergeable:
            return [_Piece(info, 0, info.numel)]
        edges = [*range(0, info.numel, self._pace[0]), info.numel]
        return [_Piece(info, *pair) for pair in pairwise(edges)]

    # -- reading -----------------------------------------------------------------------------

    def _at_once(
        self, pieces: Sequence[_Piece], finish: Callable[[_Piece, Layer | None], Tensor]
    ) -> Iterator[tuple[_Piece, Tensor]]:
        """Each piece with what ``finish`` makes of it, in order; as many at once as fit.

        Every worker reads into an array of its own, that it uses again.
        """
        local = threading.local()

        def work(piece: _Piece) -> Tensor:
            size = (len(self._sources.tasks) + 1, piece.numel if piece.info.mergeable else 0)
            return finish(piece, self._load(piece, _taken(local, *size)))

        window: deque[tuple[_Piece, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            for piece in pieces:
                if len(window) == self._workers + WAITING:
                    first, done = window.popleft()
                    yield first, done.result()
                window.append((piece, pool.submit(work, piece)))
            while window:
                first, done = window.popleft()
                yield first, done.result()

    @cached_property
    def _pace(self) -> tuple[int, int]:
        """Numbers of a piece, and how many pieces at once: the most that fit into the memory."""
        if not self._method.elementwise:
            return PIECES[-1], 1
        largest = max((info.numel for info in self.infos if info.mergeable), default=0)
        for size in PIECES:
            for workers in range(self._at_most, 0, -1):
                if self._needed_by_pieces(largest, size, workers) <= self._memory:
                    return size, workers
        return PIECES[-1], 1

    @property
    def _workers(self) -> int:
        return self._pace[1]

    def _read_ahead(
        self, pieces: Sequence[_Piece], reader: ThreadPoolExecutor
    ) -> Iterator[tuple[_Piece, Layer | None]]:
        """Each whole tensor with its layer (None for what cannot be merged), the next on its way.

        Where two of them do not fit, the next one waits.
        """
        ahead: Future[Layer | None] | None = None
        for index, piece in enumerate(pieces):
            layer = self._load(piece) if ahead is None else ahead.result()
            ahead = None
            following = pieces[index + 1] if index + 1 < len(pieces) else None
            if following is not None and self._both_fit(piece, following):
                ahead = reader.submit(self._load, following)
            yield piece, layer
            del layer

    def _both_fit(self, piece: _Piece, following: _Piece) -> bool:
        read = (len(self._sources.tasks) + 1) * following.numel * FLOAT
        return self._needed(piece.info) + read + self._statistics_bytes(following.info) <= (
            self._memory
        )

    def _load(self, piece: _Piece, held: Tensor | None = None) -> Layer | None:
        """The layer of a piece, read into ``held`` [K + 1, n] or into memory of its own."""
        info, sources = piece.info, self._sources
        if not info.mergeable:
            return None
        if held is None:
            held = torch.empty(len(sources.tasks) + 1, piece.numel)
        base = sources.base.read(info.name, held[0], piece.start)
        for row, expert in zip(held[1:], sources.experts, strict=True):
            expert.read(info.name, row, piece.start)
            if not sources.differences:
                row -= base
        shape = info.shape if piece.whole else (piece.numel,)
        layer = Layer(
            info.name,
            base.view(shape),
            held[1:].view(-1, *shape),
            sources.tasks,
            self._depths[info.name],
            self._recipe.seed,
            statistics=self._statistics(piece),
        )
        return replace(layer, thresholds=self._thresholds(info))

    def _statistics(self, piece: _Piece) -> dict[str, Tensor]:
        """The statistics of a piece: cut as it is where they have its tensor's shape."""
        found = {}
        for kind, files in self._sources.statistics.items():
            infos = [file.tensors.get(piece.info.name) for file in files]
            if any(info is None for info in infos):
                continue
            if all(info is not None and info.shape == piece.info.shape for info in infos):
                rows = [
                    file.read(piece.info.name, torch.empty(piece.numel), piece.start)
                    for file in files
                ]
                shape = piece.info.shape if piece.whole else (piece.numel,)
                found[kind] = torch.stack(rows).view(-1, *shape)
            else:
                found[kind] = torch.stack(
                    [file.whole(piece.info.name, torch.float32) for file in files]
                )
        return found

    def _thresholds(self, info: TensorInfo) -> Tensor | None:
        """The method's thresholds of a tensor, found by the first of its pieces for all."""
        if self._method.thresholds is None:
            return None
        if info.name not in self._found_thresholds:
            with self._measuring:  # one tensor at a time, so that memory stays bounded
                if info.name not in self._found_thresholds:
                    self._found_thresholds[info.name] = self._measured_thresholds(info)
        return self._found_thresholds[info.name]

    def _measured_thresholds(self, info: TensorInfo) -> Tensor:
        """The thresholds [K, m] of a tensor, of as many tasks at once as pieces are merged."""
        rule, sources = self._method.thresholds, self._sources
        assert rule is not None
        base = sources.base.whole(info.name, torch.float32)
        local = threading.local()

        def measured(number: int) -> Tensor:
            held = _taken(local, 1, info.numel)
            vector = sources.experts[number].read(info.name, held[0]).view(1, *info.shape)
            if not sources.differences:
                vector -= base
            layer = Layer(info.name, base, vector, (sources.tasks[number],))
            found: Tensor = rule(layer, **self._recipe.parameters)
            return found

        with ThreadPoolExecutor(self._workers) as pool:
            return torch.cat(list(pool.map(measured, range(len(sources.tasks)))))

    # -- merging -----------------------------------------------------------------------------

    def _merge(self, layer: Layer) -> Tensor:
        """θ [outputs, n] of one layer."""
        base = layer.base.reshape(-1)
        if self._method.own is not None:
            own = self._method.own(layer, **self._recipe.parameters)
            return base + self._scale * own.reshape(len(own), -1)
        found = self._method.directions(layer, **self._recipe.parameters)
        matrix = found.reshape(len(found), -1)
        return torch.addmv(base, matrix.t(), self._weights)[None]

    @cached_property
    def _weights(self) -> Tensor:
        return torch.full((len(self._sources.tasks),), self._scale)

    def _stored(self, piece: _Piece, merged: Tensor) -> Tensor:
        """θ in the type of the tensor, which 16 bits may overflow."""
        stored = merged.to(DTYPES[piece.info.dtype])
        if not torch.isfinite(stored.sum(dtype=merged.dtype)):
            raise self._not_finite(piece)
        return stored

    def _copied(self, piece: _Piece) -> Tensor:
        """The base's numbers, which every expert has too."""
        name, base = piece.info.name, self._sources.base
        tensor = base.whole(name).reshape(1, -1)
        own = self._sources.differences or is_rebuilt(name) or name.endswith(_COUNTERS)
        for expert in () if own else self._sources.experts:
            if not torch.equal(expert.whole(name).reshape(1, -1), tensor):
                raise CheckpointError(
                    f"{expert.role}: tensor '{name}' holds whole numbers, and others than "
                    f"{base.role}; they cannot be merged: convert quantised weights to floating "
                    "point first"
                )
        return tensor.expand(len(self.outputs), -1)

    def _not_finite(self, piece: _Piece) -> CheckpointError:
        for expert in (self._sources.base, *self._sources.experts):
            tensor = expert.whole(piece.info.name)
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                return CheckpointError(
                    f"{expert.role}: tensor '{piece.info.name}' has {bad:,} of {tensor.numel():,} "
                    "values that are NaN or infinite; expected finite weights, was the training "
                    "stable?"
                )
        return CheckpointError(
            f"the method '{self._recipe.name}' gives values for tensor '{piece.info.name}' that "
            f"are not finite as {piece.info.dtype}; lower its scale, or report it with the experts"
        )


def _taken(local: threading.local, rows: int, columns: int) -> Tensor:
    """[rows, columns] of this thread's array, which grows to the largest piece."""
    held: Tensor | None = getattr(local, "held", None)
    if held is None or len(held) < rows * columns:
        local.held = held = None  # the old one goes before the new one comes
        local.held = held = torch.empty(rows * columns)
    return held[: rows * columns].view(rows, columns)
