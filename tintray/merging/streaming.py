"""Merge whole checkpoints tensor by tensor, within a bound on memory.

Tensors are read in the order in which they lie in the base's files, merged and written in that
order. A method that is elementwise never needs more than a small piece of each checkpoint; the
others need one tensor of each at a time. What does not fit is refused before a byte is written.
Several pieces are merged at once while finished ones are written; where whole tensors are needed,
the next one is read meanwhile.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tintray.checkpoints import Checkpoint
from tintray.errors import CheckpointError, SpecError, StorageError
from tintray.merging.apply import depths
from tintray.merging.declaration import Layer
from tintray.merging.registry import Recipe
from tintray.merging.tensor_files import DTYPES, ShardedWriter, TensorFiles, TensorInfo

MEMORY = 2 * 2**30
"""Bytes that a merge may hold where nobody says otherwise."""
SHARD = 5 * 10**9
"""Bytes of one output file at most, as save_pretrained cuts them."""

_PIECES = (2**18, 2**16)  # numbers of each checkpoint at a time: larger ones where they fit
_WORKERS = 4  # at most: beyond that, memory and not arithmetic is what pieces wait for
_WAITING = 2  # merged pieces that wait to be written, beside those that are being merged
_FLOAT = 4
_TEMPORARIES = 4  # arrays like its input that an elementwise method holds, its result included

Progress = Callable[[int, int], None]
"""Told after each piece: numbers merged so far, and numbers in all."""


@dataclass(frozen=True)
class Sources:
    """What a merge reads: the base, and for each task its expert, or its task vector.

    Attributes
    ----------
    differences
        Whether ``experts`` hold task vectors already.
    statistics
        Kind to files with tensors of the same names: one per task, or one for all.
    """

    base: TensorFiles
    experts: Sequence[TensorFiles]
    tasks: tuple[str, ...]
    differences: bool = False
    statistics: Mapping[str, Sequence[TensorFiles]] = field(default_factory=dict)

    @classmethod
    def open(cls, base: Checkpoint, experts: Mapping[str, Checkpoint], stack: ExitStack) -> Self:
        """Open checkpoints whose tensors match, to be closed with ``stack``.

        Raises
        ------
        CheckpointError
            Naming the first tensor that an expert lacks, has in another shape, or has beside.
        """
        opened = stack.enter_context(TensorFiles(base.weights, "the base"))
        files = []
        for task, checkpoint in experts.items():
            found = stack.enter_context(TensorFiles(checkpoint.weights, f"expert '{task}'"))
            _check_match(opened, found)
            files.append(found)
        return cls(opened, files, tuple(experts))


def _check_match(base: TensorFiles, expert: TensorFiles) -> None:
    for name, info in base.tensors.items():
        if name not in expert.tensors:
            raise CheckpointError(
                f"{expert.role} lacks tensor '{name}', which {base.role} has with shape "
                f"{list(info.shape)}; expected an expert fine-tuned from this base"
            )
        shape = expert.tensors[name].shape
        if shape != info.shape:
            raise CheckpointError(
                f"{expert.role}: tensor '{name}' has shape {list(shape)}; {base.role} has "
                f"{list(info.shape)}; expected an expert fine-tuned from this base, and of its "
                "shape: experts with heads of their own are merged by a job"
            )
    extra = sorted(expert.tensors.keys() - base.tensors.keys())
    if extra:
        raise CheckpointError(
            f"{expert.role} has tensor '{extra[0]}', which {base.role} lacks; expected an expert "
            "fine-tuned from this base"
        )


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
            if info.floating:
                needed = self._needed(info)
                _check_fits(recipe, info.name, info.shape, len(sources.tasks), needed, memory)

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

    def tensor(self, name: str) -> Tensor:
        """One merged tensor, [outputs, *shape]."""
        parts = [part for _, part in self.pieces([name])]
        return torch.cat(parts, dim=1).view(-1, *self._sources.base.tensors[name].shape)

    def totals(self, names: Sequence[str] | None = None) -> Tensor | None:
        """What the method sums over the model, here over ``names``: [K, m]."""
        rule = self._method.totals
        if rule is None:
            return None
        base = self._sources.base
        infos = [base.tensors[name] for name in (base.tensors if names is None else names)]
        pieces = [piece for info in infos if info.floating for piece in self._cut(info)]
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
            return self._needed_by_pieces(info.numel, _PIECES[-1], 1)
        tasks = len(self._sources.tasks)
        return needed_bytes(self._recipe, info.numel, tasks) + self._statistics_bytes(info)

    def _needed_by_pieces(self, numel: int, size: int, workers: int) -> int:
        """Bytes for a tensor that is merged in pieces of ``size`` numbers, so many at once."""
        files = sum(len(files) for files in self._sources.statistics.values())
        measured = 2 * workers * files * min(numel, size) * _FLOAT
        tasks = len(self._sources.tasks)
        return measured + needed_bytes(self._recipe, numel, tasks, size, workers)

    def _statistics_bytes(self, info: TensorInfo) -> int:
        return sum(
            found.numel * _FLOAT
            for files in self._sources.statistics.values()
            for file in files
            if (found := file.tensors.get(info.name)) is not None
        )

    def _cut(self, info: TensorInfo) -> list[_Piece]:
        if not self._method.elementwise or not info.floating:
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
            size = (len(self._sources.tasks) + 1, piece.numel if piece.info.floating else 0)
            return finish(piece, self._load(piece, _taken(local, *size)))

        window: deque[tuple[_Piece, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            for piece in pieces:
                if len(window) == self._workers + _WAITING:
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
            return _PIECES[-1], 1
        largest = max((info.numel for info in self.infos if info.floating), default=0)
        for size in _PIECES:
            for workers in range(self._at_most, 0, -1):
                if self._needed_by_pieces(largest, size, workers) <= self._memory:
                    return size, workers
        return _PIECES[-1], 1

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
        read = (len(self._sources.tasks) + 1) * following.numel * _FLOAT
        return self._needed(piece.info) + read + self._statistics_bytes(following.info) <= (
            self._memory
        )

    def _load(self, piece: _Piece, held: Tensor | None = None) -> Layer | None:
        """The layer of a piece, read into ``held`` [K + 1, n] or into memory of its own."""
        info, sources = piece.info, self._sources
        if not info.floating:
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
        tensor = self._sources.base.whole(piece.info.name).reshape(1, -1)
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


def needed_bytes(
    recipe: Recipe, numel: int, tasks: int, size: int = _PIECES[-1], workers: int = 1
) -> int:
    """Bytes to merge one tensor: what is read, what the method holds, the results.

    Where the method takes pieces they have ``size`` numbers, and ``workers`` are merged at once.
    """
    method = recipe.method
    if not method.elementwise:
        return int((tasks + 1 + method.workspace * tasks + 2) * numel * _FLOAT)
    results = (workers + _WAITING) * (1 if method.own is None else tasks)
    arrays = workers * (tasks + 1 + _TEMPORARIES * tasks) + results
    needed = arrays * min(numel, size) * _FLOAT
    if method.thresholds is not None:  # whole tensors: the base, and of each a task, sizes, a copy
        needed += (1 + 3 * workers) * numel * _FLOAT
    return needed


def check_memory(
    recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], tasks: int, memory: int
) -> None:
    """Refuse a bound on memory that the largest tensor exceeds; statistics come on top.

    Raises
    ------
    SpecError
        Naming the tensor, what it needs and the bound.
    """
    for name, shape in shapes.items():
        needed = needed_bytes(recipe, math.prod(shape), tasks)
        _check_fits(recipe, name, shape, tasks, needed, memory)


def _check_fits(
    recipe: Recipe, name: str, shape: tuple[int, ...], tasks: int, needed: int, memory: int
) -> None:
    if needed > memory:
        raise SpecError(
            f"merge.memory: '{recipe.name}' needs {_mebibytes(needed)} for tensor '{name}' "
            f"{list(shape)} of {tasks} experts, the bound is {_mebibytes(memory)}; raise "
            "merge.memory, or choose an elementwise method such as task_arithmetic"
        )


def _taken(local: threading.local, rows: int, columns: int) -> Tensor:
    """[rows, columns] of this thread's array, which grows to the largest piece."""
    held: Tensor | None = getattr(local, "held", None)
    if held is None or len(held) < rows * columns:
        local.held = held = None  # the old one goes before the new one comes
        local.held = held = torch.empty(rows * columns)
    return held[: rows * columns].view(rows, columns)


def merge_checkpoints(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    output: Path,
    recipe: Recipe,
    *,
    scale: float | None = None,
    memory: int = MEMORY,
    shard_bytes: int = SHARD,
    progress: Progress | None = None,
) -> Path:
    """Merge checkpoints of one architecture, heads included, into the folder ``output``.

    The folder appears when all of it is there: interrupted, it leaves nothing. It holds the base's
    configuration and preprocessing. A method that gives each task a backbone of its own writes a
    folder for each below it.

    Parameters
    ----------
    scale
        What Σ D is multiplied by; left out, the method's own.
    memory
        Bytes that the merge may hold.
    shard_bytes
        Bytes of tensors in one output file at most.

    Raises
    ------
    CheckpointError, SpecError
        If the experts do not match, or the method cannot be run as asked; nothing is written then.
    StorageError
        If ``output`` cannot be written, or the disk has no room for it.
    """
    if output.exists():
        raise SpecError(f"{output} exists; expected a new folder to write the merge to")
    with ExitStack() as stack:
        stack.enter_context(_one_thread(recipe))
        merging = Merging(Sources.open(base, experts, stack), recipe, scale=scale, memory=memory)
        _check_room(merging, output)
        partial = output.with_name(f".{output.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for name in merging.outputs:
                (partial / name).mkdir(parents=True)
                for path in _beside_weights(base):
                    shutil.copyfile(path, partial / name / path.name)
            write_merged(merging, partial, "model", shard_bytes=shard_bytes, progress=progress)
            partial.rename(output)
        except OSError as error:
            raise StorageError(f"{output} cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return output


def _beside_weights(base: Checkpoint) -> list[Path]:
    """The files that the result takes over from the base."""
    generation = base.folder / "generation_config.json"
    config = [base.folder / "config.json", *base.preprocessor_files]
    return [*config, generation] if generation.is_file() else config


def _check_room(merging: Merging, output: Path) -> None:
    """Refuse a disk that has no room for the result, before anything is computed."""
    size = sum(info.numel * info.itemsize for info in merging.infos) * len(merging.outputs)
    there = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise StorageError(
            f"{output} cannot be written: it needs {_mebibytes(size)}, {_mebibytes(free)} are "
            f"free on the disk of {there}; make room or name another folder"
        )


@contextmanager
def _one_thread(recipe: Recipe) -> Iterator[None]:
    """Keep torch from sharing out pieces that are too small for it; reading has its own thread."""
    before = torch.get_num_threads()
    if recipe.method.elementwise:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_merged(
    merging: Merging,
    folder: Path,
    stem: str,
    *,
    shard_bytes: int = SHARD,
    progress: Progress | None = None,
) -> None:
    """Write all tensors below ``folder``: one set of files, or one for each task."""
    infos = list(merging.infos)
    total = sum(info.numel for info in infos)
    done = 0
    with ExitStack() as stack:
        writers = []
        for name in merging.outputs:
            writer = ShardedWriter(folder / name, stem, infos, shard_bytes)
            stack.callback(writer.close)
            writers.append(writer)
        for _, numbers in merging.pieces():
            for writer, row in zip(writers, numbers, strict=True):
                writer.write(row.contiguous())
            done += numbers.shape[1]
            if progress is not None:
                progress(done, total)
        for writer in writers:
            writer.finish()


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
