"""Modules at which the batches of many tasks part: each task's examples meet its own tensors.

There are two ways. Tasks are computed one after another, each with its stretch of the batch; or all
at once, with what they own stacked (``tintray.numerics.stacked_batch``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, linear, pad
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tintray.models.norms import BatchSegments, OwnsTensors
from tintray.models.structure import is_transposed
from tintray.numerics.stacked_batch import StackedBatch
from tintray.vectors.task_vectors import DOWN, UP


class PerTaskModule(nn.Module):
    """A module that runs each task's stretch of the batch with that task's own tensors.

    Tensors among the arguments whose first dimension is the whole batch are cut; others (masks
    and embeddings that broadcast, rows of positions) go to every task as they are. Outputs are
    joined along the batch; where tasks differ in size (heads with different numbers of classes) the
    smaller are padded with zeros at the end.
    """

    def __init__(self, path: str, template: nn.Module, segments: BatchSegments) -> None:
        super().__init__()
        self._path = path
        self._template = [template]  # in a list: not a submodule, its parameters stand for nothing
        self._segments = segments
        # Hooks of the module run once, on the whole batch.
        self._forward_hooks, template._forward_hooks = template._forward_hooks, OrderedDict()

    def __getattr__(self, name: str) -> Any:
        """Attributes that the model reads off the module that stood here (a dtype, a size)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_template"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the template once per task and join the outputs [Σ sizes, …]."""
        if self._segments.together is not None:
            return self._together(self._segments.together, args, kwargs)
        if self._segments.stacked and type(self._template[0]) is nn.Linear and not kwargs:
            return self._heads(*args)
        sizes = self._segments.sizes
        total = sum(sizes)
        outputs = []
        start = 0
        for size, layer in zip(sizes, self._segments.layers, strict=True):

            def cut(value: Any, start: int = start, size: int = size) -> Any:
                return value[start : start + size] if _is_batch(value, total) else value

            answer = torch.func.functional_call(
                self._template[0], self._own(layer), tree_map(cut, args), tree_map(cut, kwargs)
            )
            outputs.append(_whole(answer, size, total))
            start += size
        return _join(outputs)

    def _together(self, batch: StackedBatch, args: Any, kwargs: Any) -> Any:
        """The same with all tasks' tensors stacked: every kernel of the module runs once."""
        given, form = tree_flatten((args, kwargs))
        parted = [_is_batch(value, len(batch.owner)) for value in given]
        given = [batch.padded(v) if cut else v for v, cut in zip(given, parted, strict=True)]
        answers: list[Any] = []  # the last answer, flat, and its form

        def run(own: dict[str, Tensor], *given: Any) -> tuple[Tensor, ...]:
            args, kwargs = tree_unflatten(list(given), form)
            answer = torch.func.functional_call(self._template[0], own, args, kwargs)
            answers[:] = tree_flatten(answer)
            return tuple(value for value in answers[0] if isinstance(value, Tensor))

        dims = (0, *(0 if cut else None for cut in parted))
        # Attention as plain products: of the fused kernels some cannot be batched once more, and
        # others want memory to lie as it does not here.
        with sdpa_kernel(SDPBackend.MATH):
            found = iter(torch.vmap(run, in_dims=dims)(self._stacked(batch), *given))
        flat, form = answers
        joined = [batch.gathered(next(found)) if isinstance(v, Tensor) else v for v in flat]
        return tree_unflatten(joined, form)

    def _stacked(self, batch: StackedBatch) -> dict[str, Tensor]:
        """All tasks' tensors of this module, [K, …], by their names in it."""
        below = f"{self._path}." if self._path else ""
        return {
            name.removeprefix(below): tensor
            for name, tensor in batch.tensors.items()
            if name.startswith(below)
        }

    def _heads(self, given: Tensor) -> Any:
        """The same of a linear layer, without the cost of replacing its tensors for each task."""
        parts = torch.split(given, self._segments.sizes)
        own = (self._own(layer) for layer in self._segments.layers)
        return _join(
            [linear(part, t["weight"], t.get("bias")) for part, t in zip(parts, own, strict=True)]
        )

    def _own(self, layer: OwnsTensors) -> dict[str, Tensor]:
        """A task's tensors of this module, by their names in it."""
        below = len(self._path) + 1
        return {
            name[below:]: tensor
            for name, tensor in layer.tensors.items()
            if name.startswith(self._path + ".")
        }


class PerTaskProducts(PerTaskModule):
    """A module that runs each task's stretch with some shared tensors plus that task's products."""

    def __init__(
        self, path: str, template: nn.Module, segments: BatchSegments, names: Mapping[str, str]
    ) -> None:
        """``names``: the tensors' names in the module, with those that the layout knows."""
        super().__init__(path, template, segments)
        # The same tensors under the same names: what is below is replaced in both.
        self._parameters, self._buffers = template._parameters, template._buffers
        self._modules = template._modules
        self._names = names
        self._broadcasts: bool | None = None  # not known before it was tried

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As a whole if every table is one row [1, …] for all examples, and may be one for each.

        Whether it may, the module is asked once: its answers have to be those of the tasks apart.
        """
        if self._segments.together is not None:
            return self._together(self._segments.together, args, kwargs)
        several = self._segments.stacked and len(self._segments.sizes) > 1 and self._one_row
        if not several or self._broadcasts is False:
            return super().forward(*args, **kwargs)
        if self._broadcasts:
            return self._at_once(args, kwargs)
        apart = super().forward(*args, **kwargs)
        try:
            whole = self._at_once(args, kwargs)
            self._broadcasts = torch.allclose(whole, apart, rtol=1e-4, atol=1e-5)
        except (RuntimeError, TypeError, IndexError):  # other shapes than the module expects
            self._broadcasts = False
        return apart

    @property
    def _one_row(self) -> bool:
        """Whether every table has one row [1, …] for all examples."""
        tables = [self._parameters[name] for name in self._names]
        return all(table is not None and table.ndim > 2 and len(table) == 1 for table in tables)

    def _together(self, batch: StackedBatch, args: Any, kwargs: Any) -> Any:
        if self._broadcasts is None:
            self._broadcasts = self._one_row and self._takes_tables(batch, args, kwargs)
        if not self._broadcasts:
            return super()._together(batch, args, kwargs)
        own = {name: batch.of_examples(t[:, 0]) for name, t in self._stacked(batch).items()}
        return torch.func.functional_call(self._template[0], own, args, kwargs)

    @torch.no_grad()
    def _takes_tables(self, batch: StackedBatch, args: Any, kwargs: Any) -> bool:
        """Whether the module takes a table per example, and answers each by its own.

        Asked with tables that differ from task to task in every number.
        """
        generator = torch.Generator().manual_seed(0)
        tables = {
            name: torch.randn(batch.tasks, *shared.shape, generator=generator).to(shared)
            for name, shared in ((n, cast(Tensor, self._parameters[n])) for n in self._names)
        }
        each = {name: batch.of_examples(table[:, 0]) for name, table in tables.items()}
        apart = super()._together(
            replace(batch, tensors={self._names[n]: t for n, t in tables.items()}), args, kwargs
        )
        try:
            whole = torch.func.functional_call(self._template[0], each, args, kwargs)
            return bool((whole - apart).norm() <= 0.02 * apart.norm())  # in bfloat16, too
        except (RuntimeError, TypeError, IndexError):  # other shapes than the module expects
            return False

    def _stacked(self, batch: StackedBatch) -> dict[str, Tensor]:
        own = {}
        for name, full in self._names.items():
            if full in batch.tensors:  # a table itself
                own[name] = batch.tensors[full]
                continue
            shared: Any = self._parameters[name]
            product = batch.tensors[full + UP] @ batch.tensors[full + DOWN]
            own[name] = shared + product.view(batch.tasks, *shared.shape)
        return own

    def _at_once(self, args: Any, kwargs: Any) -> Any:
        """Run the module on the whole batch, each example with its task's tables."""
        layers = self._segments.layers
        sizes = torch.tensor(self._segments.sizes)
        own = {}
        for name, full in self._names.items():
            shared: Any = self._parameters[name]
            up, down = (torch.stack([t.tensors[full + end] for t in layers]) for end in (UP, DOWN))
            tables = shared + (up @ down).view(len(layers), *shared.shape[1:])
            own[name] = tables.repeat_interleave(sizes.to(tables.device), 0)
        return torch.func.functional_call(self._template[0], own, args, kwargs)

    def _own(self, layer: OwnsTensors) -> dict[str, Tensor]:
        own = {}
        for name, full in self._names.items():
            shared: Any = self._parameters[name]
            product = layer.tensors[full + UP] @ layer.tensors[full + DOWN]
            own[name] = shared + product.view_as(shared)
        return own


class PerTaskLowRankEmbedding(nn.Module):
    """A table that all tasks look up, to whose rows each task adds a product of its own."""

    def __init__(self, name: str, shared: nn.Embedding, segments: BatchSegments) -> None:
        super().__init__()
        self.weight, self._padding = shared.weight, shared.padding_idx
        self._up, self._down = name + UP, name + DOWN
        self._segments = segments

    def forward(self, rows: Tensor) -> Tensor:
        """[Σ sizes, S] to [Σ sizes, S, d]; one row [1, S] of positions serves all examples."""
        if self._segments.together is not None:
            return self._together(self._segments.together, rows)
        sizes = self._segments.sizes
        if len(rows) != sum(sizes):
            rows = rows.expand(sum(sizes), *rows.shape[1:])
        own = [
            layer.tensors[self._up][part] @ layer.tensors[self._down]
            for part, layer in zip(torch.split(rows, sizes), self._segments.layers, strict=True)
        ]
        return embedding(rows, self.weight, self._padding) + torch.cat(own)

    def _together(self, batch: StackedBatch, rows: Tensor) -> Tensor:
        up, down = batch.tensors[self._up], batch.tensors[self._down]
        rows = rows.expand(len(batch.owner), *rows.shape[1:])
        picked = embedding(rows + up.shape[1] * batch.owner[:, None], up.flatten(0, 1))
        return embedding(rows, self.weight, self._padding) + picked @ batch.of_examples(down)


class PerTaskLowRankLinear(nn.Module):
    """A linear layer that all tasks share, to which each task adds a low-rank product of its own.

    The shared part runs on the whole batch at once; only the products part by task.
    """

    def __init__(self, name: str, shared: nn.Module, segments: BatchSegments) -> None:
        super().__init__()
        self.weight, self.bias = shared.weight, shared.bias  # under the names that they had
        self._transposed = is_transposed(shared)
        self._up, self._down = name + UP, name + DOWN
        self._segments = segments

    def forward(self, given: Tensor) -> Tensor:
        """[Σ sizes, …, n] to [Σ sizes, …, m]."""
        weight: Any = self.weight
        bias: Any = self.bias
        weight = weight.t() if self._transposed else weight
        if self._segments.together is not None:
            return linear(given, weight, bias) + self._together(self._segments.together, given)
        parts = torch.split(given, self._segments.sizes)
        own = []
        for part, layer in zip(parts, self._segments.layers, strict=True):
            up, down = layer.tensors[self._up], layer.tensors[self._down]
            own.append(part @ up @ down if self._transposed else part @ down.t() @ up.t())
        return linear(given, weight, bias) + torch.cat(own)

    def _together(self, batch: StackedBatch, given: Tensor) -> Tensor:
        up, down = (batch.of_examples(batch.tensors[name]) for name in (self._up, self._down))
        if not self._transposed:
            up, down = down.mT, up.mT
        rows = given.reshape(len(given), -1, given.shape[-1])
        return (rows @ up @ down).view(*given.shape[:-1], -1)


def _join(outputs: list[Any]) -> Any:
    if isinstance(outputs[0], tuple):
        return tuple(_join(list(column)) for column in zip(*outputs, strict=True))
    if not isinstance(outputs[0], Tensor):
        return outputs[0]
    shape = [max(sizes) for sizes in zip(*(output.shape[1:] for output in outputs), strict=True)]

    def padded(output: Tensor) -> Tensor:
        rooms = [size - have for size, have in zip(shape, output.shape[1:], strict=True)]
        if not any(rooms):
            return output
        return pad(output, [edge for room in reversed(rooms) for edge in (0, room)])

    return torch.cat([padded(output) for output in outputs])


def _whole(output: Any, size: int, total: int) -> Any:
    """One task's output with a row per example; what is one for all of them is repeated.

    T5 computes its relative positions once, in the first block, for a batch of whatever size. They
    are a task's own where that block is, and the later blocks are given them.
    """
    if isinstance(output, tuple):
        return tuple(_whole(value, size, total) for value in output)
    if isinstance(output, Tensor) and output.ndim > 2 and len(output) == 1 < size < total:
        return output.expand(size, *output.shape[1:])
    return output


def _is_batch(value: Any, total: int) -> bool:
    """Whether an argument has one entry per example; a row of positions only looks so."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != total:
        return False
    return value.ndim > 1 or value.is_floating_point()
