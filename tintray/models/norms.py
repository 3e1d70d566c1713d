"""Batch normalisation in a merge: each task keeps statistics of its own.

Running means and variances belong to weights: those of an expert are wrong for a merged backbone,
and an average over tasks is right for none. So a fit normalises each task's stretch of the batch by
that stretch; afterwards every task's statistics are estimated anew, on its pool under the merged
weights, and kept with its tint layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from tintray.numerics.stacked_batch import StackedBatch

Statistics = Literal["batch", "collect", "running"]
"""Those of the batch; the same, and remembered; or the task's running ones."""


class OwnsTensors(Protocol):
    """A tint layer, as far as statistics go."""

    tensors: dict[str, Tensor]


@dataclass
class BatchSegments:
    """How the current batch is cut, one stretch per task; shared by all parted modules."""

    sizes: list[int] = field(default_factory=list)
    layers: Sequence[OwnsTensors] = field(default_factory=list)
    statistics: Statistics = "batch"
    # whether tasks may be stacked where they part, which is faster and may round otherwise
    stacked: bool = False
    # a batch of which all that tasks do apart is done at once; sizes and layers are then not asked
    together: StackedBatch | None = None
    collected: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)


class TaskNorm(nn.Module):
    """A batch normalisation whose weights are as they were, and whose statistics are a task's.

    In a shared part of the model it cuts the batch itself; within a private module it is given one
    task's stretch, and its buffers are the task's own.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, path: str, norm: _BatchNorm, segments: BatchSegments, *, private: bool
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self._path, self._private, self._segments = path, private, segments

    def forward(self, given: Tensor) -> Tensor:
        """[b, C, …] to the same, each task's stretch by its own statistics."""
        if self._private:
            return self._normalised(given, self.running_mean, self.running_var)
        stretches = torch.split(given, self._segments.sizes)
        mean, variance = f"{self._path}.running_mean", f"{self._path}.running_var"
        return torch.cat(
            [
                self._normalised(part, layer.tensors[mean], layer.tensors[variance])
                for part, layer in zip(stretches, self._segments.layers, strict=True)
            ]
        )

    def _normalised(self, given: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        alone = given.numel() == given.shape[1]  # no statistics come of one value per channel
        if alone or self._segments.statistics == "running":
            return batch_norm(given, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        if self._segments.statistics == "collect":
            dims = [0, *range(2, given.ndim)]
            seen = (given.mean(dims), given.var(dims))
            self._segments.collected.setdefault(self._path, []).append(seen)
        return batch_norm(given, None, None, self.weight, self.bias, True, 0.0, self.eps)


def replace_norms(module: nn.Module, private: Sequence[str], segments: BatchSegments) -> list[str]:
    """Let every batch normalisation of a model part by task; their paths."""
    below = tuple(f"{path}." for path in private)
    paths = list(norm_paths(module))
    for path in paths:
        parent, _, name = path.rpartition(".")
        norm = module.get_submodule(path)
        assert isinstance(norm, _BatchNorm)  # norm_paths names no others
        own = f"{path}.".startswith(below)
        setattr(module.get_submodule(parent), name, TaskNorm(path, norm, segments, private=own))
    return paths


def norm_paths(module: nn.Module) -> Iterator[str]:
    """Paths of the modules that keep statistics of batches."""
    for path, child in module.named_modules():
        if isinstance(child, _BatchNorm) and child.track_running_stats:
            yield path


def norm_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Their statistics by full name."""
    return {
        f"{path}.{name}": buffer.detach().clone()
        for path in norm_paths(module)
        for name, buffer in module.get_submodule(path).named_buffers()
    }


def store_collected(segments: BatchSegments, layer: OwnsTensors) -> None:
    """Write the mean of the statistics that were collected into a task's layer."""
    for path, found in segments.collected.items():
        means, variances = zip(*found, strict=True)
        layer.tensors[f"{path}.running_mean"] = torch.stack(means).mean(0)
        layer.tensors[f"{path}.running_var"] = torch.stack(variances).mean(0)
    segments.collected.clear()
