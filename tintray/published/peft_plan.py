"""What of a merge goes into a shared backbone and what into each task's PEFT adapter.

PEFT's mixed batches (``adapter_names=``) hold low-rank products on linear layers and on tables of
tokens, and whole linear layers, convolutions and tables (``modules_to_save``). They hold neither
normalisation layers nor parameters of a module that has others below it, such as a ViT's table of
positions. A tint that has one of these is held whole, to be used one task at a time; or, with a
chosen rank, put into what all tasks share as the mean over them, and then something is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from tintray.errors import InputError
from tintray.models.structure import head_modules, is_linear, tied_names
from tintray.numerics.low_rank import LowRank, balanced
from tintray.vectors.task_vectors import DOWN, UP

MASKED = -1e4
"""Bias of a class that a task has not: its probability is 0, in half precision too."""
_PROBE = 3  # examples
_WHOLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class TaskAdapter:
    """What one task adds to the backbone or puts in the place of a part of it, by tensor."""

    products: dict[str, LowRank] = field(default_factory=dict)  # added to the weight of that name
    biases: dict[str, Tensor] = field(default_factory=dict)  # added to the bias of that name
    whole: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class PeftPlan:
    """A backbone, and an adapter for each task.

    Attributes
    ----------
    shared
        What stands in the backbone at the places that tasks own, by tensor.
    saved
        Paths of the modules that adapters hold whole.
    unmixable
        The tensor for whose sake a batch cannot be mixed, and why; None where it can.
    positions
        Whether a mixed batch has to be given its ``position_ids`` for every example.
    lost
        Tensors that tasks own and adapters do not hold as they are.
    """

    shared: dict[str, Tensor]
    adapters: dict[str, TaskAdapter]
    saved: tuple[str, ...] = ()
    unmixable: str | None = None
    positions: bool = False
    lost: tuple[str, ...] = ()

    def weights(self) -> set[str]:
        """Names of the weights that some adapter adds a product to."""
        return {name for adapter in self.adapters.values() for name in adapter.products}

    def tensors(
        self, task: str, backbone: Mapping[str, Tensor], shape: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What a task's model has at the places that tasks own, cut to the shapes of its own."""
        own = self.adapters[task]
        found = {**self.shared, **own.whole}
        for name, product in own.products.items():
            before = found[name] if name in found else backbone[name]
            found[name] = before + product.up @ product.down
        for name, bias in own.biases.items():
            found[name] = found[name] + bias
        return {name: tensor[_within(shape[name])] for name, tensor in found.items()}


def _within(tensor: Tensor) -> tuple[slice, ...]:
    return tuple(slice(size) for size in tensor.shape)


class Places:
    """Where the tensors that tasks own stand in a model, and what PEFT can do there.

    PEFT parts a layer's input along its first dimension. So the model is run on three examples: in
    some, a layer is given the tokens of all examples, or windows, one below the other.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.positions = False  # a table was found whose rows are asked for by example only so
        self._tied = tied_names(module)
        self._heads = tuple(f"{path}." for path in head_modules(module))
        self._given, self._positioned = _parted(module), _parted(module, positions=True)

    def owner(self, name: str) -> nn.Module:
        """The module that a tensor is of."""
        return self.module.get_submodule(name.rpartition(".")[0])

    def paths(self, name: str) -> list[str]:
        """Paths of the modules in use that have this tensor: several, where it is tied."""
        names = [name, *(alias for alias, of in self._tied.items() if of == name)]
        found = [name.rpartition(".")[0] for name in names]
        return [path for path in found if path in self._given] or found[:1]

    def of_head(self, name: str) -> bool:
        """Whether a tensor is part of the head."""
        return name.startswith(self._heads)

    def parts(self, path: str) -> bool:
        """Whether a layer is given its input example by example."""
        return self._given.get(path, False)

    def takes_product(self, name: str) -> str | None:
        """None if PEFT can add a product to this weight in a mixed batch; else why not."""
        return self._refusal(name, is_linear)

    def takes_whole(self, name: str) -> str | None:
        """None if PEFT can hold this tensor's module whole in a mixed batch; else why not."""
        return self._refusal(name, lambda owner: isinstance(owner, _WHOLE))

    def _refusal(self, name: str, is_known: Callable[[nn.Module], bool]) -> str | None:
        for path in self.paths(name):
            owner = self.module.get_submodule(path)
            table, kind = isinstance(owner, nn.Embedding), type(owner).__name__
            scaled = "ScaledWordEmbedding" in kind  # PEFT knows its scale
            plain = scaled or type(owner).forward is nn.Embedding.forward
            if not (plain if table else is_known(owner)):
                return f"'{name}' is of a {kind}, which PEFT's mixed batches cannot hold"
            if table and not self.parts(path) and self._positioned.get(path):
                self.positions = True
            elif not self.parts(path):
                return f"'{name}' is of a layer that is not given its input example by example"
        return None


def _parted(module: nn.Module, *, positions: bool = False) -> dict[str, bool]:
    """For each layer in use, whether it is given inputs [N, …] where the model is given N."""
    known: Any = signature(module.forward).parameters
    ids = torch.ones(_PROBE, 5, dtype=torch.long)
    batch = {name: ids for name in ("input_ids", "decoder_input_ids") if name in known}
    if "pixel_values" in known:
        config: Any = module.config
        size = getattr(config, "image_size", None) or 64
        sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        batch["pixel_values"] = torch.zeros(_PROBE, getattr(config, "num_channels", 3), *sides)
    if positions:
        if "position_ids" not in known:
            return {}
        batch["position_ids"] = torch.arange(5).expand(_PROBE, 5)
    given: dict[str, set[int]] = {}

    def noting(path: str) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                given.setdefault(path, set()).add(len(inputs[0]))

        return note

    hooks = [
        child.register_forward_pre_hook(noting(path)) for path, child in module.named_modules()
    ]
    try:
        with torch.inference_mode():
            module(**batch)
    except Exception:  # noqa: BLE001 - a model that takes no such batch is not parted
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return {path: sizes == {_PROBE} for path, sizes in given.items()}


def exact_plan(
    places: Places, own: Mapping[str, Mapping[str, Tensor]], states: Mapping[str, Any]
) -> PeftPlan:
    """Hold every tensor that tasks own as it is: for mixed batches, or else one task at a time.

    Parameters
    ----------
    own
        For each task what it owns: tensors by name, factors of products beside them.
    states
        For each task the state of its model; padded where heads differ in size.
    """
    first = next(iter(own.values()))
    weights = [name.removesuffix(UP) for name in first if name.endswith(UP)]
    whole = [name for name in first if not name.endswith((UP, DOWN)) and _differs(name, states)]
    refused = {name: why for name in weights if (why := places.takes_product(name))}
    refused |= {name: why for name in whole if (why := places.takes_whole(name))}
    kept = [name for name in weights if name not in refused]
    saved = _outermost(path for name in [*whole, *refused] for path in places.paths(name))
    if "" in saved:
        raise InputError(
            f"tasks own '{next(iter(refused), whole[0])}', which is of no module that an adapter "
            "can hold; export the models of the tasks themselves (--task)"
        )
    below = tuple(f"{path}." for path in saved)
    adapters = {}
    for task, tensors in own.items():
        products = {
            name: LowRank(tensors[name + UP], tensors[name + DOWN])
            for name in kept
            if not name.startswith(below)
        }
        state = {name: t for name, t in states[task].items() if name.startswith(below)}
        adapters[task] = TaskAdapter(products, whole=state)
    shared = dict(next(iter(adapters.values())).whole)
    unmixable = next(iter(refused.values()), None)
    return PeftPlan(shared, adapters, saved, unmixable, places.positions and not unmixable)


def _differs(name: str, states: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether tasks have this tensor each of their own; what is alike may be shared."""
    first, *others = (state[name] for state in states.values())
    return not all(torch.equal(first, other) for other in others) or not others


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    return tuple(found)


def ranked_plan(
    places: Places,
    own: Mapping[str, Mapping[str, Tensor]],
    states: Mapping[str, Any],
    rank: int,
    *,
    factors_alone: bool,
) -> PeftPlan:
    """Hold what tasks own as products of one rank, for mixed batches; see the module for the rest.

    A weight that tasks own whole becomes their mean and, for each, the best product of that rank
    for what it differs by. With ``factors_alone`` (servers of language models) nothing is held
    whole; without, heads and biases are.
    """
    first, saved, lost = next(iter(own.values())), set[str](), set[str]()
    plan = PeftPlan({}, {task: TaskAdapter() for task in own})
    weights = {name.removesuffix(UP) for name in first if name.endswith(UP)}
    tables = any(isinstance(places.owner(name), nn.Embedding) for name in weights)
    for name in dict.fromkeys(name.removesuffix(UP) for name in first if not name.endswith(DOWN)):
        if not _differs(name, states):
            continue
        takes_product = not places.takes_product(name)
        if name in weights and takes_product:
            for task, tensors in own.items():
                product = LowRank(tensors[name + UP], tensors[name + DOWN])
                plan.adapters[task].products[name] = _cut(product, rank)
            lost |= {name} if first[name + UP].shape[1] > rank else set()
            continue
        linear = is_linear(places.owner(name))
        holds = name not in weights and not factors_alone and not places.takes_whole(name)
        if holds and (places.of_head(name) or not linear):
            saved |= set(places.paths(name))
            continue
        values = {task: states[task][name] for task in own}
        plan.shared[name] = mean = _mean(values.values())
        if linear and takes_product and mean.ndim == 2:
            for task, value in values.items():
                plan.adapters[task].products[name] = _best(value - mean, rank)
            lost |= {name} if min(mean.shape) > rank else set()
        elif linear and takes_product and not factors_alone and not tables:
            for task, value in values.items():
                plan.adapters[task].biases[name] = value - mean
        elif any(not torch.equal(value, mean) for value in values.values()):
            lost.add(name)
    below = tuple(f"{path}." for path in saved)
    for task, state in states.items():
        plan.adapters[task].whole = {n: t for n, t in state.items() if n.startswith(below)}
    plan.shared |= next(iter(plan.adapters.values())).whole
    plan.saved, plan.lost = tuple(sorted(saved)), tuple(sorted(lost))
    plan.positions = places.positions
    return plan


def _mean(tensors: Iterable[Tensor]) -> Tensor:
    found = list(tensors)
    return torch.stack([tensor.double() for tensor in found]).mean(0).to(found[0].dtype)


def _best(matrix: Tensor, rank: int) -> LowRank:
    """The best product of at most ``rank`` for a matrix [m, n]."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    product = balanced(left, values, right, rank)
    return LowRank(product.up.float(), product.down.float())


def _cut(product: LowRank, rank: int) -> LowRank:
    if product.up.shape[1] <= rank:
        return product
    return _best(product.up.double() @ product.down.double(), rank)


def padded(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """States of tasks' models whose heads have as many rows as the largest: one shape for all.

    A row that a task has not is zero, and its bias ``MASKED``.

    Raises InputError if they differ in more than rows.
    """
    tasks = list(states)
    shapes = {
        name: (max(states[task][name].shape[:1] for task in tasks), tensor.shape[1:])
        for name, tensor in states[tasks[0]].items()
    }
    found: dict[str, dict[str, Tensor]] = {}
    for task, state in states.items():
        found[task] = {}
        for name, tensor in state.items():
            rows, others = shapes[name]
            if tensor.shape[1:] != others:
                raise InputError(
                    f"tensor '{name}' has the shape {list(tensor.shape)} in task '{task}' and "
                    f"{list(states[tasks[0]][name].shape)} in '{tasks[0]}'; expected heads that "
                    "differ in the number of their classes alone, export these tasks apart (--task)"
                )
            if tensor.shape[:1] != rows:
                filled = tensor.new_full((*rows, *others), MASKED if not others else 0.0)
                filled[: len(tensor)] = tensor
                tensor = filled
            found[task][name] = tensor
    return found
