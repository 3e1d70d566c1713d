"""A task vector in a file, as its artifact is: read like a checkpoint, adapters included."""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.merging.files.tensor_files import TensorFiles
from tintray.vectors.task_vectors import DOWN, UP


class VectorFiles(TensorFiles):
    """A task vector as ``task_vectors.pack`` names it, given as one tensor per name of the base.

    Products are multiplied out, only where they are read; what has not changed is zero.
    """

    def read(self, name: str, out: Tensor, start: int = 0) -> Tensor:
        """Numbers ``start … start + len(out)`` of a tensor into ``out`` [n]."""
        if name in self.tensors:
            return super().read(name, out, start)
        if name + UP not in self.tensors:
            return out.zero_()
        up, down = self.whole(name + UP, torch.float32), self.whole(name + DOWN, torch.float32)
        width = down.shape[1]
        first, last = start // width, -(-(start + len(out)) // width)
        rows = (up[first:last] @ down).flatten()
        skipped = start - first * width
        return out.copy_(rows[skipped : skipped + len(out)])

    def whole(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor in memory of its own; of a product [m, n], of what has not changed one zero."""
        if name in self.tensors:
            return super().whole(name, dtype)
        product = name + UP in self.tensors
        shape = (
            (self.tensors[name + UP].shape[0], self.tensors[name + DOWN].shape[1])
            if product
            else (1,)
        )
        out = torch.empty(torch.Size(shape).numel(), dtype=dtype or torch.float32)
        return self.read(name, out).view(shape)
