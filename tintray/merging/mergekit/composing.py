"""Merge whole models as a plan says, tensor by tensor, within a bound on memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tintray.merging.files.memory import MEMORY, PIECES, check_fits
from tintray.merging.files.pieces import MergedPiece, Piece, check_equal, cut, one_by_one, stored
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
                info, count = planned.info, len(planned.inputs)
                size = min(info.numel, PIECES[-1]) if blend.piecewise else info.numel
                needed = self._needed(planned, size)
                check_fits(blend.name, info.name, info.shape, count, needed, memory)

    def pieces(self) -> Iterator[MergedPiece]:
        """Piece after piece of the merged tensors, in order: info and numbers [1, n].

        Raises
        ------
        CheckpointError
            If whole numbers differ between models, or a result is not finite.
        """
        plan = self._plan.values()
        pieces = [piece for planned in plan for piece in cut(planned.info, self._size(planned))]
        return one_by_one(pieces, self._read, self._merged, self._both_fit)

    # -- what fits ---------------------------------------------------------------------------

    def _needed(self, planned: Planned, numel: int) -> int:
        itemsize = DTYPES[planned.work_dtype].itemsize
        return self._blend.needed_bytes(numel, len(planned.inputs), itemsize)

    def _both_fit(self, piece: Piece, following: Piece) -> bool:
        after = self._plan[following.info.name]
        read = len(after.inputs) * following.numel * DTYPES[after.work_dtype].itemsize
        return self._needed(self._plan[piece.info.name], piece.numel) + read <= self._memory

    def _size(self, planned: Planned) -> int | None:
        """Numbers of a piece of this tensor; None where it has to be merged as a whole."""
        if planned.dtype is not None and not self._blend.piecewise:
            return None
        fitting = (size for size in PIECES if self._needed(planned, size) <= self._memory)
        return next(fitting, PIECES[-1])

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
        inputs = ((self._models[model], name) for model, name in planned.inputs)
        return stored(merged, planned.info, self._blend.name, inputs, given.dtype).reshape(1, -1)
