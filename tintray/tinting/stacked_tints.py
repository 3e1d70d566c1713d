"""The tint layers of many tasks in one array, a row for each, that one optimiser moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tintray.numerics.stacked_adam import AdamRow, StackedAdam
from tintray.tinting.step import TaskState
from tintray.tinting.tint_layers import TintLayer


def can_stack(layers: Sequence[TintLayer]) -> bool:
    """Whether tint layers have the same tensors, but for the number of their classes."""
    first = layers[0]
    return all(
        layer.rates == first.rates
        and layer.tensors.keys() == first.tensors.keys()
        and all(
            tensor.shape[1:] == first.tensors[name].shape[1:]
            and tensor.dtype == first.tensors[name].dtype
            for name, tensor in layer.tensors.items()
        )
        for layer in layers
    )


class StackedTints:
    """K tint layers whose numbers are moved into common arrays; the layers become views of them.

    Where tasks differ in the number of their classes, what the smaller lack is zero, and stays so:
    whoever computes with it masks what comes of it. States are kept and restored task by task.

    Attributes
    ----------
    tensors
        What tasks own, by name: [K, …]; those that learn are parameters with a gradient.
    """

    def __init__(self, tasks: Sequence[TaskState]) -> None:
        layers = [task.layer for task in tasks]
        first = layers[0]
        self.tensors: dict[str, Tensor] = {}
        for name in first.tensors:
            tensors = [layer.tensors[name] for layer in layers]
            stacked = _padded(tensors)
            learns = name in first.rates
            self.tensors[name] = nn.Parameter(stacked) if learns else stacked
            for row, layer in enumerate(layers):
                own = stacked[row, : len(tensors[row])] if stacked.ndim > 1 else stacked[row]
                layer.tensors[name] = nn.Parameter(own) if learns else own
        names = [name for of_rate in first.by_rate().values() for name in of_rate]
        self._adam: StackedAdam | None = None
        if names:
            parameters = [t for n in names if isinstance(t := self.tensors[n], nn.Parameter)]
            self._adam = StackedAdam(parameters, [first.rates[name] for name in names])
        for row, task in enumerate(tasks):
            if self._adam is not None:
                lengths = [len(task.layer.tensors[name]) for name in names]
                task.optimiser = AdamRow(self._adam, row, lengths)
            task.watch_layer()

    def update(self, moving: Tensor, pace: Tensor) -> None:
        """One step of the tasks that move, bool [K], at a share [] of their highest rates."""
        if self._adam is not None:
            self._adam.update(moving, pace)

    def zero_gradients(self) -> None:
        """Forget the gradients of the last step."""
        if self._adam is not None:
            self._adam.zero_gradients()


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """One array [K, …]; along the first dimension, smaller tensors end in zeros."""
    if tensors[0].ndim == 0:
        return torch.stack([tensor.detach() for tensor in tensors])
    most = max(map(len, tensors))
    stacked = tensors[0].new_zeros(len(tensors), most, *tensors[0].shape[1:])
    for row, tensor in zip(stacked, tensors, strict=True):
        row[: len(tensor)] = tensor.detach()
    return stacked
