"""Prefix activations: while θ stays, so does what runs before a tint site; it is run once.

A tint layer that is learned under a fixed backbone needs the modules in front of it for nothing but
their outputs. ``PrefixModel`` finds out which modules those are, runs them once over a pool, and
from then on takes a batch's activations from there. Everything else (losses, filters, batches,
optimiser) is the same code: a ``PrefixModel`` stands where a ``FusedModel`` does, and the pool that
``cached`` makes where the task's pool does.

Nothing is known beforehand of how a model computes. Which values the rest of the model needs is
found by filling all others with NaN on a few examples; a site at which the shortcut would not give
what the whole model gives is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from tintray.errors import TintrayError
from tintray.models.hooks import Call, EnoughError, Watch, Where, answering, beside, hooked
from tintray.numerics.choices import Precision
from tintray.numerics.layout import Layout, Theta
from tintray.numerics.schedules import Schedule
from tintray.pools.feeding import examples_at_once
from tintray.pools.pool import Pool
from tintray.tinting.step import StepSettings, TaskGroup, TaskMetrics, TaskState
from tintray.tinting.tint_layers import FusedModel, TintLayer

_PROBE = 5  # examples on which the shortcut is found, and fewer on which it is checked
_ROUNDING: Mapping[Precision, float] = {"float32": 1e-4, "bfloat16": 5e-2}
_MARK = "prefix."  # begins the names of activations among a pool's inputs


class NoPrefixError(TintrayError):
    """The model has no part before the site that could be skipped; use the whole model."""


@dataclass(frozen=True)
class _Source:
    """One cached tensor: leaf ``leaf`` of a skipped module's output or of a site's input."""

    module: str
    call: int
    leaf: int


@dataclass(frozen=True)
class _Plan:
    """How a forward pass goes without its prefix, found on a probe of some examples."""

    size: int  # examples of the probe
    skipped: Mapping[str, Call]  # what each module gave that is not run: one call each
    needed: tuple[str, ...]  # whose outputs, of these, the rest of the model needs
    inputs: tuple[_Source, ...]  # which leaves of the inputs of the site's modules are cached
    blank: Mapping[str, Tensor]  # the model's inputs that are no longer needed

    @property
    def outputs(self) -> tuple[_Source, ...]:
        """Which leaves of the skipped modules' outputs are cached."""
        return tuple(
            _Source(path, 0, leaf)
            for path in self.needed
            for leaf, value in enumerate(self.skipped[path].leaves)
            if _of_batch(value, self.size)
        )

    @property
    def sources(self) -> tuple[_Source, ...]:
        """What is cached, in the order of its names ``prefix.0``, ``prefix.1``, …"""
        return (*self.outputs, *self.inputs)


class CachedPool(Pool):
    """A pool whose batches begin at a tint site: activations, and what inputs are needed still."""

    def stored(self, index: Tensor | slice) -> dict[str, Tensor]:
        """Model inputs and activations of the examples at ``index``; nothing is cut off them."""
        return {name: tensor[index] for name, tensor in self.inputs.items()}

    @property
    def activations(self) -> dict[str, Tensor]:
        """The activations, each [N, …], to be kept."""
        return {name: value for name, value in self.inputs.items() if name.startswith(_MARK)}


class PrefixModel(FusedModel):
    """A ``FusedModel`` that takes what lies before ``site``, modules' paths, from a cache."""

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        private: Sequence[str],
        site: Sequence[str],
        low_rank: Iterable[str] = (),
        device: str = "cpu",
    ) -> None:
        super().__init__(module, layout, private, low_rank, device)
        self.site = tuple(site)
        self._where = device
        self._plan: _Plan | None = None

    def cached(
        self,
        pool: Pool,
        layer: TintLayer,
        precision: Precision = "float32",
        activations: Mapping[str, Tensor] | None = None,
    ) -> CachedPool:
        """A pool in memory whose batches begin at the site.

        ``bind`` comes first, with the θ that stays. ``activations`` are those of an earlier call
        over the same pool under the same θ; left out, they are computed.

        Raises
        ------
        NoPrefixError
            If nothing lies before the site, or the rest of the model cannot do without it.
        """
        plan = self._plan = self._plan or self._found_plan(pool, layer, precision)
        cached_values = activations or self._activations(plan, pool, layer, precision)
        inputs = {name: value for name, value in pool.inputs.items() if name not in plan.blank}
        changed: dict[str, Any] = {"inputs": {**inputs, **cached_values}}
        if "pixel_values" not in inputs:
            changed |= {"scale": None, "shift": None}
        return CachedPool(**{f.name: getattr(pool, f.name) for f in fields(pool)} | changed)

    def forward(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        layers: Sequence[TintLayer],
        precision: Precision = "float32",
    ) -> list[Tensor]:
        """As ``FusedModel.forward``, for batches of pools that ``cached`` made."""
        plan = self._plan
        assert plan is not None, "cached() comes first"
        joined = {
            name: torch.cat([batch[name] for batch in batches]).to(self._where)
            for name in batches[0]
        }
        sizes = [len(next(iter(batch.values()))) for batch in batches]
        known = {source: joined.pop(f"{_MARK}{n}") for n, source in enumerate(plan.sources)}
        return self._replay(plan, joined, known, sizes, layers, precision)

    # -- caching -------------------------------------------------------------------------------

    @torch.inference_mode()
    def _activations(
        self, plan: _Plan, pool: Pool, layer: TintLayer, precision: Precision
    ) -> dict[str, Tensor]:
        """``prefix.0``, …: each [N, …], from one pass of the prefix over the pool."""
        pieces: list[list[Tensor]] = [[] for _ in plan.sources]
        size = examples_at_once(pool, self._where)
        for start in range(0, len(pool), size):
            batch = pool.untrimmed(slice(start, min(start + size, len(pool))))
            seen = self._prefix_pass(batch, layer, precision, plan)
            for piece, source in zip(pieces, plan.sources, strict=True):
                piece.append(seen[source].to("cpu"))
        # Cloned, to be ordinary tensors: autograd may not save those of inference mode.
        with torch.inference_mode(False):
            return {f"{_MARK}{n}": torch.cat(found).clone() for n, found in enumerate(pieces)}

    def _prefix_pass(
        self, batch: Mapping[str, Tensor], layer: TintLayer, precision: Precision, plan: _Plan
    ) -> dict[_Source, Tensor]:
        """Run the model up to the last value that is cached; all of them."""
        last = {(source.module, source.call) for source in plan.inputs}
        watch = Watch(self._module, plan.skipped, self.site, until=last)
        with watch, suppress(EnoughError):
            self._whole(batch, layer, precision)
        found = {s: watch.outputs[s.module][0].leaves[s.leaf] for s in plan.outputs}
        return found | {s: watch.inputs[s.module, s.call].leaves[s.leaf] for s in plan.inputs}

    def _whole(self, batch: Mapping[str, Tensor], layer: TintLayer, precision: Precision) -> Tensor:
        """The whole model's answer to one task's batch."""
        return FusedModel.forward(self, [batch], [layer], precision)[0]

    # -- replaying -----------------------------------------------------------------------------

    def _replay(
        self,
        plan: _Plan,
        inputs: Mapping[str, Tensor],
        known: Mapping[_Source, Tensor],
        sizes: Sequence[int],
        layers: Sequence[TintLayer],
        precision: Precision,
    ) -> list[Tensor]:
        """Run the model with skipped modules giving what is known, and NaN where it is not."""
        total = sum(sizes)
        begin: dict[Where, dict[int, Tensor]] = {}
        for source in plan.inputs:
            begin.setdefault((source.module, source.call), {})[source.leaf] = known[source]
        outputs = {
            path: [
                known.get(_Source(path, 0, n), leaf)
                if path in plan.needed
                else _blank(leaf, plan.size, total)
                for n, leaf in enumerate(call.leaves)
            ]
            for path, call in plan.skipped.items()
        }
        blanks = {name: _blank(value, plan.size, total) for name, value in plan.blank.items()}
        with self.shortcut(plan.skipped, outputs, lambda where, _: begin.get(where, {})):
            return self._answers({**inputs, **blanks}, sizes, layers, precision)

    @contextmanager
    def shortcut(
        self,
        skipped: Mapping[str, Call],
        outputs: Mapping[str, Sequence[Any]],
        begin: Callable[[Where, Call], Mapping[int, Tensor]],
    ) -> Iterator[None]:
        """Let skipped modules give these leaves; ``begin`` replaces what the site's are given."""
        with ExitStack() as stack:
            for path, call in skipped.items():
                module = self._module.get_submodule(path)
                stack.enter_context(answering(module, call.value(outputs[path])))
            for path in self.site:
                stack.enter_context(hooked(self._module.get_submodule(path), path, begin))
            yield

    # -- finding what can be skipped -----------------------------------------------------------

    @torch.no_grad()
    def _found_plan(self, pool: Pool, layer: TintLayer, precision: Precision) -> _Plan:
        size = min(_PROBE, len(pool))
        few = pool.untrimmed(slice(0, size))
        batch = {name: tensor.to(self._where) for name, tensor in few.items()}
        watch = Watch(self._module, beside(self._module, self.site), self.site)
        with watch:
            self._whole(batch, layer, precision)
        skipped = {path: calls[0] for path, calls in watch.outputs.items() if len(calls) == 1}
        if not skipped:
            raise NoPrefixError(f"nothing runs before {', '.join(self.site)}")
        probe = _Probe(self, skipped, watch.inputs, batch, layer, precision, size)
        floats = [name for name, value in batch.items() if value.is_floating_point()]
        try:
            inputs = probe.tainted(floats)
            incomplete = probe.spoilt(skipped, floats, inputs)
            needed = [path for path in skipped if incomplete and probe.spoilt([path], (), inputs)]
            given = [name for name in floats if incomplete and probe.spoilt((), [name], inputs)]
            blank = {name: batch[name] for name in floats if name not in given}
            plan = _Plan(size, skipped, tuple(needed), tuple(inputs), blank)
            truth, found = self._both(plan, batch, layer, precision)
        except (RuntimeError, ValueError, IndexError) as error:
            raise NoPrefixError(
                f"the model cannot be run from {', '.join(self.site)} on: {error}"
            ) from error
        # Rounding grows with the size of the answers, not with that of each.
        tolerance = _ROUNDING[precision] * float(truth.abs().max())
        if not torch.allclose(found, truth, rtol=0, atol=tolerance):
            raise NoPrefixError(
                f"the model cannot be run from {', '.join(self.site)} on: it would answer otherwise"
            )
        return plan

    def _both(
        self, plan: _Plan, batch: Mapping[str, Tensor], layer: TintLayer, precision: Precision
    ) -> tuple[Tensor, Tensor]:
        """What the whole model and a plan answer to all examples of the probe but the last."""
        few = {name: value[: max(1, plan.size - 1)] for name, value in batch.items()}
        known = self._prefix_pass(few, layer, precision, plan)
        inputs = {name: value for name, value in few.items() if name not in plan.blank}
        sizes = [len(next(iter(few.values())))]
        found = self._replay(plan, inputs, known, sizes, [layer], precision)[0]
        return self._whole(few, layer, precision), found


@dataclass(frozen=True)
class _Probe:
    """Forward passes on the probe in which some values are NaN: whoever shows it needs them."""

    model: PrefixModel
    skipped: Mapping[str, Call]
    inputs: Mapping[Where, Call]
    batch: Mapping[str, Tensor]
    layer: TintLayer
    precision: Precision
    size: int

    def tainted(self, floats: Sequence[str]) -> list[_Source]:
        """The leaves of the site's inputs that depend on what is skipped."""
        sources: list[_Source] = []
        # What the second module of a site gets may come from the first: values are put right as
        # they are met, so that only what comes from before the site shows.

        def look(where: Where, call: Call) -> dict[int, Tensor]:
            known = self.inputs[where].leaves
            bad = [n for n, leaf in enumerate(call.leaves) if _has_nan(leaf)]
            sources.extend(_Source(*where, n) for n in bad)
            return {n: known[n] for n in bad}

        self._pass(self.skipped, floats, look)
        return sources

    def spoilt(
        self,
        outputs: Collection[str],
        floats: Sequence[str],
        inputs: Sequence[_Source],
    ) -> bool:
        """Whether the model's output is NaN without these modules' outputs and these inputs."""
        known = {s: self.inputs[s.module, s.call].leaves[s.leaf] for s in inputs}

        def give(where: Where, call: Call) -> dict[int, Tensor]:
            return {s.leaf: v for s, v in known.items() if (s.module, s.call) == where}

        return _has_nan(self._pass(outputs, floats, give))

    def _pass(
        self,
        blank: Collection[str],
        floats: Sequence[str],
        begin: Callable[[Where, Call], dict[int, Tensor]],
    ) -> Tensor:
        batch = {
            name: torch.full_like(value, torch.nan) if name in floats else value
            for name, value in self.batch.items()
        }
        outputs = {
            path: [_blank(leaf, self.size, self.size) for leaf in call.leaves]
            if path in blank
            else call.leaves
            for path, call in self.skipped.items()
        }
        with self.model.shortcut(self.skipped, outputs, begin):
            return self.model._whole(batch, self.layer, self.precision)


def _of_batch(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def _has_nan(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and bool(leaf.isnan().any())


def _blank(leaf: Any, size: int, total: int) -> Any:
    """NaN in the place of a tensor, ``total`` rows where it had ``size``, without memory for each.

    What cannot be NaN, or is not of the batch, stays.
    """
    if not _of_batch(leaf, size) or not leaf.is_floating_point():
        return leaf
    return leaf.new_full((), torch.nan).expand(total, *leaf.shape[1:])


def prefix_key(
    theta: str, pool: str, rows: Tensor, site: Sequence[str], precision: Precision
) -> str:
    """The hash under which activations are cached, of all that they depend on.

    ``theta`` is the published backbone's, ``pool`` is ``Pool.digest``; ``rows`` [n] says which of
    the pool's examples they are of.
    """
    chosen = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    text = f"prefix-activations 2 {theta} {pool} {chosen} {' '.join(site)} {precision}"
    return hashlib.sha256(text.encode()).hexdigest()


def fit_tints(
    tasks: Sequence[TaskState],
    model: FusedModel,
    theta: Theta,
    settings: StepSettings,
    pace: Schedule,
    rounds: int,
    device: str = "cpu",
) -> dict[str, TaskMetrics]:
    """Learn the tint layers of some tasks under a backbone that stays; metrics of the last round.

    Parameters
    ----------
    model
        A ``PrefixModel`` where the tasks' pools are ``CachedPool``, else a ``FusedModel``: the same
        result, at the cost of the whole model in every round.
    theta
        The backbone, flat [P], or its pieces.
    pace
        The share of their highest rates at which tint layers learn, for each round.
    device
        Where the model computes; θ and the tint layers are there.

    Raises
    ------
    FitError
        If a loss stops being finite.
    """
    group = TaskGroup(tasks, model, torch.zeros(0, device=device), settings)
    model.bind(theta, None)
    metrics: dict[str, TaskMetrics] = {}
    for round_ in range(rounds):
        metrics = group.step(None, round_, pace(round_)).metrics
    return metrics
