"""Merge whole models as a plan says, tensor by tensor, within a bound on memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tintray.checkpoints.safetensors_files import TensorInfo
from tintray.errors import CheckpointError, SpecError
from tintray.merging.files.memory import MEMORY, PIECES, mebibytes
from tintray.merging.files.pieces import Piece, check_equal, cut, one_by_one, stored
from tintray.merging.files.tensor_files import DTYPES, TensorFiles
from tintray.merging.mergekit.blend import Blend, Inputs
from tintray.merging.mergekit.planning import Planned


class Composing:
    """A plan on opened models, ready to be written; see ``writing.write_folder``.

    Parameters
    ----------
    models
        The models' files by the names that the plan has.
    memory
        Bytes that inputs, results and the method's own arrays may take together.

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
        self._models, self._blend = models, blend
        self._plan = {planned.info.name: planned for planned in plan}
        self._memory, self._seed = memory, seed
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
        return [planned.info for planned in self._plan.values()]

    def pieces(self) -> Iterator[tuple[TensorInfo, Tensor]]:
        """Piece after piece of the merged tensors, in order: info and numbers [1, n].

        Raises
        ------
        CheckpointError
            If whole numbers differ between models, or a result is not finite.
        """
        pieces = [
            p for planned in self._plan.values() for p in cut(planned.info, self._size(planned))
        ]
        return one_by_one(pieces, self._read, self._merged, self._both_fit)

    # -- what fits ---------------------------------------------------------------------------

    def _needed(self, planned: Planned, numel: int) -> int:
        itemsize = DTYPES[planned.work_dtype].itemsize
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

    def _both_fit(self, piece: Piece, following: Piece) -> bool:
        after = self._plan[following.info.name]
        read = len(after.inputs) * following.numel * DTYPES[after.work_dtype].itemsize
        return self._needed(self._plan[piece.info.name], piece.numel) + read <= self._memory

    def _size(self, planned: Planned) -> int | None:
        """Numbers of a piece of this tensor; None where it has to be merged as a whole."""
        if planned.dtype is not None and not self._blend.piecewise:
            return None
        fitting = [size for size in PIECES if self._needed(planned, size) <= self._memory]
        return fitting[0] if fitting else PIECES[-1]

    # -- reading and merging -----------------------------------------------------------------

    def _read(self, piece: Piece) -> tuple[Tensor, ...]:
        planned = self._plan[piece.info.name]
        dtype = DTYPES[planned.work_dtype]
        return tuple(
            self._models[model]
            .read(name, torch.empty(piece.numel, dtype=dtype), piece.start)
            .view(piece.shape)
            for model, name in planned.inputs
        )

    def _merged(self, piece: Piece, tensors: tuple[Tensor, ...]) -> Tensor:
        planned = self._plan[piece.info.name]
        if planned.dtype is None:
            for (model, name), tensor in zip(planned.inputs, tensors, strict=True):
                check_equal(name, tensor, model, tensors[0], planned.inputs[0][0])
            return tensors[0].reshape(1, -1)
        given = Inputs(planned.info.name, tensors, planned.base, self._seed)
        merged = self._blend.merge(given, planned.shared, list(planned.each))
        return stored(
            merged,
            planned.info,
            lambda: self._not_finite(planned, tensors),
            given.precise,
        ).reshape(1, -1)

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
