"""Merge whole models as a plan says, tensor by tensor, within a bound on memory.

The next tensor is read while one is merged, where both fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tintray.checkpoints.safetensors_files import TensorInfo
from tintray.errors import CheckpointError, SpecError
from tintray.merging.files.memory import MEMORY, PIECES, mebibytes
from tintray.merging.files.tensor_files import DTYPES, TensorFiles
from tintray.merging.mergekit.blends import Blend
from tintray.merging.mergekit.inputs import Inputs
from tintray.merging.mergekit.planning import Planned


@dataclass(frozen=True)
class _Stretch:
    planned: Planned
    start: int
    stop: int


class Composing:
    """A plan on opened models, ready to be written; see ``writing.write_folder``.

    Parameters
    ----------
    models
        The models' files by the names that the plan has.
    memory
        Bytes that inputs, results and the method's own arrays may take together.
    seed
        The seed of random methods.

    Raises
    ------
    SpecError
        If the largest tensor needs more memory.
    """

    def __init__(
        self,
        models: Mapping[str, TensorFiles],
        plan: Sequence[Planned],
        blend: Blend,
        *,
        memory: int = MEMORY,
        seed: int = 0,
    ) -> None:
        self._models = models
        self._plan = plan
        self._blend = blend
        self._memory = memory
        self._seed = seed
        for planned in plan:
            if planned.dtype is not None:
                self._check_fits(planned)

    @property
    def outputs(self) -> tuple[str, ...]:
        """One result, in the folder itself."""
        return ("",)

    @property
    def infos(self) -> list[TensorInfo]:
        """All tensors of the result, in the order in which they are written."""
        return [planned.info for planned in self._plan]

    def pieces(self) -> Iterator[tuple[TensorInfo, Tensor]]:
        """Stretch after stretch of the merged tensors, in order: info and numbers [1, n].

        Raises
        ------
        CheckpointError
            If whole numbers differ between models, or a result is not finite.
        """
        stretches = [stretch for planned in self._plan for stretch in self._cut(planned)]
        following = [*stretches[1:], None]
        ahead: Future[tuple[Tensor, ...]] | None = None
        with ThreadPoolExecutor(1) as reader:
            for stretch, after in zip(stretches, following, strict=True):
                tensors = self._read(stretch) if ahead is None else ahead.result()
                ahead = None
                if after is not None and self._both_fit(stretch, after):
                    ahead = reader.submit(self._read, after)
                merged = self._merged(stretch, tensors)
                del tensors  # a large tensor's inputs must go before the next one's come
                yield stretch.planned.info, merged.reshape(1, -1)
                del merged

    # -- what fits ---------------------------------------------------------------------------

    def _needed(self, planned: Planned, numel: int) -> int:
        itemsize = DTYPES[planned.dtype or planned.info.dtype].itemsize
        return self._blend.needed_bytes(numel, len(planned.inputs), itemsize)

    def _check_fits(self, planned: Planned) -> None:
        numel = planned.info.numel
        needed = self._needed(planned, min(numel, PIECES[-1]) if self._blend.piecewise else numel)
        if needed > self._memory:
            raise SpecError(
                f"memory: '{self._blend.name}' needs {mebibytes(needed)} for tensor "
                f"'{planned.info.name}' {list(planned.info.shape)} of {len(planned.inputs)} "
                f"models, the bound is {mebibytes(self._memory)}; raise it with --memory, or "
                "choose an elementwise method such as task_arithmetic"
            )

    def _both_fit(self, stretch: _Stretch, after: _Stretch) -> bool:
        bytes_ = DTYPES[after.planned.dtype or after.planned.info.dtype].itemsize
        read = len(after.planned.inputs) * (after.stop - after.start) * bytes_
        needed = self._needed(stretch.planned, stretch.stop - stretch.start)
        return needed + read <= self._memory

    def _cut(self, planned: Planned) -> list[_Stretch]:
        numel = planned.info.numel
        if numel == 0:
            return []
        if planned.dtype is not None and not self._blend.piecewise:
            return [_Stretch(planned, 0, numel)]
        fitting = [size for size in PIECES if self._needed(planned, size) <= self._memory]
        edges = [*range(0, numel, fitting[0] if fitting else PIECES[-1]), numel]
        return [_Stretch(planned, *pair) for pair in pairwise(edges)]

    # -- reading and merging -----------------------------------------------------------------

    def _read(self, stretch: _Stretch) -> tuple[Tensor, ...]:
        planned = stretch.planned
        count = stretch.stop - stretch.start
        shape = planned.info.shape if count == planned.info.numel else (count,)
        dtype = DTYPES[planned.dtype or planned.info.dtype]
        return tuple(
            self._models[model]
            .read(name, torch.empty(count, dtype=dtype), stretch.start)
            .view(shape)
            for model, name in planned.inputs
        )

    def _merged(self, stretch: _Stretch, tensors: tuple[Tensor, ...]) -> Tensor:
        planned = stretch.planned
        if planned.dtype is None:
            return self._agreed(planned, tensors)
        given = Inputs(planned.info.name, tensors, planned.base, self._seed)
        merged = self._blend.merge(given, planned.shared, list(planned.each))
        stored = merged.to(DTYPES[planned.info.dtype])
        if not torch.isfinite(stored.sum(dtype=given.precise)):
            raise self._not_finite(planned, tensors)
        return stored

    def _agreed(self, planned: Planned, tensors: tuple[Tensor, ...]) -> Tensor:
        for (model, name), tensor in zip(planned.inputs, tensors, strict=True):
            if not torch.equal(tensor, tensors[0]):
                raise CheckpointError(
                    f"{model}: tensor '{name}' holds whole numbers, and others than "
                    f"{planned.inputs[0][0]}; they cannot be merged: convert quantised weights to "
                    "floating point first"
                )
        return tensors[0]

    def _not_finite(self, planned: Planned, tensors: tuple[Tensor, ...]) -> CheckpointError:
        for (model, name), tensor in zip(planned.inputs, tensors, strict=True):
            if not torch.isfinite(tensor).all():
                return CheckpointError(
                    f"{model}: tensor '{name}' has values that are NaN or infinite as "
                    f"{planned.dtype}; expected finite weights"
                )
        return CheckpointError(
            f"{self._blend.name} gives values for tensor '{planned.info.name}' that are not finite "
            f"as {planned.info.dtype}; look at its weights, which may add up to 0, and at out_dtype"
        )
