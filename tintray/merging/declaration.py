"""What a merging method is: one pure function on one tensor, and what is known about it.

A method answers with *directions* D [K, …]: what each task contributes to the merged tensor,

    θ = θ₀ + scale · Σₖ Dₖ

so that a merge, a search for the scale, and a fit that gives every task a coefficient of its own
(θˡ = θ₀ˡ + Σₖ λₖˡ Dₖˡ, started at λ = scale) all read the same function. A new method is a file
like this one, named by the entry point group ``tintray.methods``::

    from torch import Tensor
    from tintray.merging import Layer, Parameter, method

    @method("median", summary="The median task vector, coordinate by coordinate.",
            source="Tukey 1977", scale=1.0, elementwise=True)
    def median(layer: Layer) -> Tensor:
        middle = layer.vectors.median(0).values
        return middle.expand_as(layer.vectors) / len(layer.vectors)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tintray.errors import SpecError, nearest
from tintray.vectors.task_count_scale import scale_for_task_count

Value = float | int
Rule = Callable[..., Tensor]
"""``(layer, **parameters)`` to a tensor; it changes none of what it is given."""


@dataclass(frozen=True)
class Parameter:
    """A number that a method can be tuned by, and where it may lie.

    Both ends of its range belong to it, but for those that ``open_low`` and ``open_high`` exclude.
    """

    name: str
    default: Value
    low: float
    high: float
    about: str
    open_low: bool = False
    open_high: bool = False
    whole: bool = False  # it counts something

    @property
    def range(self) -> str:
        """The range in the notation of intervals, such as ``(0, 1]``."""
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"

    def check(self, value: object, method: str) -> Value:
        """``value`` if it lies in the range, else a ``SpecError``."""
        kind = int if self.whole else int | float
        if isinstance(value, kind) and not isinstance(value, bool):
            above = value > self.low if self.open_low else value >= self.low
            below = value < self.high if self.open_high else value <= self.high
            if above and below:
                return value
        what = "a whole number" if self.whole else "a number"
        raise SpecError(
            f"merge.parameters.{self.name}: expected {what} in {self.range} for the method "
            f"'{method}' ({self.about}), found {value!r}"
        )


@dataclass(frozen=True)
class Layer:
    """All that a method may know of one tensor.

    ``statistics`` were measured for it beforehand, by kind: ``fisher`` [K, …], ``gram``
    [K, in, in], and singular value decompositions. A method computes where these tensors are.
    """

    name: str  # the tensor's in the model
    base: Tensor  # θ₀, float32
    vectors: Tensor  # τₖ = θₖ − θ₀, float32 [K, …]
    tasks: tuple[str, ...]
    depth: float = 0.0  # where it sits: 0 before the first block, 1 in the last one and after it
    seed: int = 0  # what random methods derive their streams from, together with names
    thresholds: Tensor | None = None  # what the method's ``thresholds`` gave for it, [K, m]
    totals: Tensor | None = None  # what the method's ``totals`` gave over the model, [K, m]
    statistics: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))

    def on(self, device: str | torch.device) -> Layer:
        """The layer with all of its tensors on a device; it shares those that are there already."""

        def there(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            base=self.base.to(device),
            vectors=self.vectors.to(device),
            thresholds=there(self.thresholds),
            totals=there(self.totals),
            statistics={kind: found.to(device) for kind, found in self.statistics.items()},
        )


@dataclass(frozen=True)
class Method:
    """A merging method and what is known about it.

    Attributes
    ----------
    adds_up
        Whether Σ D grows with the tasks, so that more than a few get less of the scale each; see
        ``scale_for_task_count``.
    tuned
        Whether its source looks for the scale on held-out data, so that a comparison has to.
    own
        For methods that give each task a backbone of its own: layer to Δ [K, …], where task k
        runs on θ₀ + scale · Δₖ. Their ``directions`` sum to the part that all tasks share.
    thresholds
        One task's whole tensor to numbers [1, m] that ``directions`` needs, such as quantiles.
    totals
        A tensor (or any part of it) to numbers [K, m], summed over the model beforehand.
    elementwise
        Whether a coordinate's result depends on that coordinate (and on ``thresholds`` and
        ``totals``) alone, so that a large tensor can be merged a piece at a time.
    workspace
        For the others: how many copies of the task vectors it holds while it runs, the result
        included.
    """

    name: str
    directions: Rule  # layer to D [K, …]
    summary: str
    source: str
    parameters: tuple[Parameter, ...] = ()
    scale: float | None = 1.0  # of Σ D where nobody says otherwise; None is 1/K
    adds_up: bool = False
    tuned: bool = True
    own: Rule | None = None
    thresholds: Rule | None = None
    totals: Rule | None = None
    elementwise: bool = False
    workspace: float = 1.0
    needs: tuple[str, ...] = ()  # statistics that must have been measured, by kind
    uses: tuple[str, ...] = ()  # statistics that spare it work where they have been measured
    most: int | None = None  # the most tasks that it can merge
    # at these parameters one task at scale 1 gives back the expert; None promises no such thing
    expert_at: Mapping[str, Value] | None = field(default_factory=lambda: MappingProxyType({}))

    def start(self, tasks: int) -> float:
        """The scale where nobody says otherwise."""
        if self.scale is None:
            return 1.0 / tasks
        return self.scale * scale_for_task_count(tasks) if self.adds_up else self.scale

    def complete(self, given: Mapping[str, Any]) -> dict[str, Value]:
        """Every parameter's value: what is given, else the default; refuses what is neither."""
        known = [parameter.name for parameter in self.parameters]
        for name in given:
            if name not in known:
                raise SpecError(
                    f"merge.parameters.{name}: the method '{self.name}' has no such parameter"
                    f"{nearest(name, known)}; it has {', '.join(known) or 'none'}"
                )
        return {p.name: p.check(given.get(p.name, p.default), self.name) for p in self.parameters}

    def check_tasks(self, tasks: int) -> None:
        """Refuse more tasks than the method merges, or none."""
        if tasks == 0:
            raise SpecError("tasks: expected at least one expert to merge, found none")
        if self.most is not None and tasks > self.most:
            raise SpecError(
                f"merge.method: '{self.name}' merges at most {self.most} experts, found {tasks}; "
                "use 'karcher', its form for any number"
            )


def method(
    name: str, *, summary: str, source: str, parameters: Sequence[Parameter] = (), **known: Any
) -> Callable[[Rule], Method]:
    """Declare the decorated function as the directions of a method; see :class:`Method`."""

    def declare(function: Rule) -> Method:
        taken = list(inspect.signature(function).parameters)[1:]
        expected = [parameter.name for parameter in parameters]
        if taken != expected:
            raise TypeError(f"method '{name}' takes {taken}, its parameters are {expected}")
        return Method(name, function, summary, source, tuple(parameters), **known)

    return declare


def rows(vectors: Tensor) -> Tensor:
    """Task vectors as a matrix [K, n]; no copy."""
    return vectors.reshape(len(vectors), -1)


def per_task(values: Tensor, like: Tensor) -> Tensor:
    """One number per task [K], shaped to multiply task vectors [K, …]."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def shared_out(total: Tensor, shares: Tensor) -> Tensor:
    """Directions [K, …] that sum to ``total`` […], in proportion to ``shares`` ≥ 0 [K, …].

    Where all shares are zero every task gets the same.
    """
    whole = shares.sum(0)
    even = torch.full_like(shares, 1.0 / len(shares))
    return total * torch.where(whole > 0, shares / whole.clamp_min(1e-38), even)
