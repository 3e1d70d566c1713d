"""Which tasks fight: by their task vectors, by their gradients, and by what leaving one out does.

A published merge is looked at as it is: its backbone, its coefficients, its tints. A job is looked
at before it runs: as the average of its experts, each with its own head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.events import OnEvent, PhaseStarted, ignore
from tintray.jobs.records import Record
from tintray.jobs.watching.remembered import keep
from tintray.jobs.watching.states import State, before, find, published
from tintray.jobs.watching.trying import try_split
from tintray.numerics.layout import block_of
from tintray.vectors.similarity import Pairs, cosine, groups, halves

EXAMPLES = 128
"""Of each pool, by which losses and gradients are measured."""

HARM, BEYOND = 0.05, 1.4
"""Who costs the others more than this share of their losses, and so much more than usual, is far
from the rest."""

EXACT = 16
"""Tasks of a published merge, at most, each of which is left out in truth: so many passes squared.

Where a fit has ended slopes are small, and first order says nothing of how steep it is further off.
"""

_HELD = 2**28  # numbers of all gradients together that are compared with each other

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class LayerConflict(Record):
    """One layer, over all pairs of tasks."""

    layer: str
    cosine: float  # a mean over pairs
    sign_conflict: float  # a mean over pairs: share of numbers that two tasks move apart
    furthest: Sequence[str]  # the two tasks with the lowest cosine
    lowest: float  # theirs


@dataclass(frozen=True)
class Split(Record):
    """Two merges in the place of one. The figures are means over tasks; None: not measured."""

    groups: Sequence[Sequence[str]]
    how: str  # what the figures are
    together: float | None = None  # of one merge of all
    apart: float | None = None  # of the merges of the groups


@dataclass(frozen=True)
class Conflicts(Record):
    """What was found about the tasks of a merge or a job. Rows and columns are tasks, in order."""

    of: str
    state: str  # at what the gradients were taken: "the merge", "the average of the experts"
    tasks: Sequence[str]
    sizes: Sequence[float]  # ‖τ‖ of each
    cosine: Matrix  # of task vectors
    sign_conflict: Matrix
    layers: Sequence[LayerConflict]
    losses: Sequence[float]
    gradients: Matrix  # cosines of the tasks' gradients on the shared backbone
    # [k][t]: by what share of it the loss of t rises if k is left out; below 0, k costs t something
    effects: Matrix
    measured: bool  # whether each was left out; else it is an estimate in first order
    correction: Sequence[float]  # the same if what tasks learned together is left out
    groups: Sequence[Sequence[str]]
    alone: Sequence[str]  # what should stand alone, each a sentence
    split: Split | None = None


def conflicts(
    target: str,
    *,
    store: str | None = None,
    catalog: str | None = None,
    examples: int = EXAMPLES,
    try_rounds: int | None = None,
    on_event: OnEvent | None = None,
) -> Conflicts:
    """Which tasks fight: of a merge, of a job file before it runs, or of a job in the catalog.

    With ``try_rounds`` one merge of all and the merges of the split that is offered are fitted for
    so many rounds. What is found of a merge is kept in its store, and its reports have it then.

    Raises InputError for a merge by a method that adds no task vectors up, or where data, experts
    or artifacts of the job are gone.
    """
    told = on_event or ignore
    spec, url = find(target, store, catalog)
    if url is None:
        assert spec is not None
        with before(spec, examples, told) as state:
            found = compared(state, examples, told)
        return _tried(found, spec, try_rounds, told)
    with published(url, *chosen(store, catalog), examples, told) as (state, parent):
        found = compared(state, examples, told)
    found = _tried(found, parent.spec, try_rounds, told)
    keep(parent.store, parent.manifest, found, told)
    return found


def _tried(found: Conflicts, spec: JobSpec, rounds: int | None, on_event: OnEvent) -> Conflicts:
    """The same, with what the split keeps after so many rounds."""
    if rounds is None or found.split is None:
        return found
    together, apart = try_split(spec, found.split.groups, rounds, on_event)
    how = f"of the experts' accuracy after {rounds} rounds"
    return replace(found, split=Split(found.split.groups, how, together, apart))


def compared(state: State, examples: int, on_event: OnEvent) -> Conflicts:
    """All that is found of tasks in a state."""
    names, layout = state.names, state.layout
    on_event(PhaseStarted("comparing", "task vectors"))
    by_slot = state.workers.assignment.shards.compare()
    by_layer: dict[str, Pairs] = {}
    for slot, pairs in zip(layout.slots, by_slot, strict=True):
        layer = block_of(slot.name)
        by_layer[layer] = by_layer[layer] + pairs if layer in by_layer else pairs
    whole = sum(by_slot[1:], by_slot[0])
    on_event(PhaseStarted("comparing", "gradients of all tasks"))
    losses, gradients, effects, correction = _first_order(state, examples)
    exact = state.learned and len(names) <= EXACT
    if exact:
        effects, correction = left_out(state, losses, examples)
    usual = _mean_of_pairs(whole.cosine)
    together = groups(whole.cosine, usual) if len(names) > 1 else [[0]]
    return Conflicts(
        of=state.of,
        state=state.what,
        tasks=names,
        sizes=whole.products.diagonal().clamp_min(0).sqrt().tolist(),
        cosine=whole.cosine.tolist(),
        sign_conflict=whole.sign_conflict.tolist(),
        layers=[_layer(layer, pairs, names) for layer, pairs in by_layer.items()],
        losses=losses.tolist(),
        gradients=gradients.tolist(),
        effects=effects.tolist(),
        measured=exact,
        correction=correction.tolist(),
        groups=[[names[task] for task in group] for group in together],
        alone=_alone(names, whole.cosine, effects),
        split=_split(state, (whole.cosine, gradients)) if len(names) > 2 else None,
    )


def _layer(layer: str, pairs: Pairs, names: Sequence[str]) -> LayerConflict:
    cosines = pairs.cosine + 2 * torch.eye(len(names))
    row, column = divmod(int(cosines.argmin()), len(names))
    figures = (_mean_of_pairs(pairs.cosine), _mean_of_pairs(pairs.sign_conflict))
    lowest = float(pairs.cosine[row, column])
    return LayerConflict(layer, *figures, (names[row], names[column]), lowest)


def _mean_of_pairs(matrix: Tensor) -> float:
    """The mean beside the diagonal."""
    count = len(matrix)
    beside = float(matrix.sum() - matrix.diagonal().sum())
    return beside / max(count * (count - 1), 1)


def _first_order(state: State, examples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [K], cosines of gradients [K, K], effects [K, K] of tasks and [K] of a correction.

    Without λₖτₖ the loss of t is Lₜ − ⟨λₖτₖ, gₜ⟩ to first order, with gₜ = ∂Lₜ/∂θ; the products
    with all task vectors are those of a round. What is left of θ − θ₀ is the correction.
    """
    shards, moved = state.workers.assignment.shards, state.moved()
    step = max(1, len(state.names) * state.layout.numel // _HELD)
    losses, rows, effects, correction = [], [], [], []
    for name in state.names:
        pieces, loss = state.step(name, state.theta, examples)
        products = shards.fold(state.backend.get(shards.project([pieces])))  # [K, L]
        gradient = np.concatenate([np.asarray(p) for p in state.backend.get(pieces)])
        own = (state.coefficients * products).double().sum(1)
        losses.append(loss)
        rows.append(torch.from_numpy(gradient[::step].copy()))
        effects.append(-own)
        correction.append(float(own.sum()) - float(gradient.astype(np.float64) @ moved))
    stacked, known = torch.stack(rows), torch.tensor(losses, dtype=torch.float64)
    relative = known.abs().clamp_min(1e-12)
    shares = torch.stack(effects, 1) / relative
    alike = cosine((stacked @ stacked.T).double())
    return known, alike, shares, torch.tensor(correction, dtype=torch.float64) / relative


def left_out(state: State, losses: Tensor, examples: int) -> tuple[Tensor, Tensor]:
    """Effects [K, K] of leaving out each task, and [K] of leaving out the correction, measured."""
    shards = state.workers.assignment.shards
    theta, base = shards.gather(state.theta), shards.gather(state.merged(state.coefficients * 0))
    whole, rows = np.zeros_like(theta), []

    def without(part: Floats) -> Tensor:
        left = theta - part
        pieces = [state.backend.put(left[bounds]) for bounds in shards.bounds]
        found = [state.step(name, pieces, examples)[1] for name in state.names]
        return (torch.tensor(found, dtype=torch.float64) - losses) / losses.abs().clamp_min(1e-12)

    for task in range(len(state.names)):
        only = torch.zeros_like(state.coefficients)
        only[task] = state.coefficients[task]
        part = shards.gather(state.merged(only)) - base
        whole += part
        rows.append(without(part))
    return torch.stack(rows), without(theta - base - whole)


def _alone(names: Sequence[str], cosines: Tensor, effects: Tensor) -> list[str]:
    """Which tasks are so far from the rest that they should stand alone, and why."""
    others = len(names) - 1
    if others < 2:
        return []
    harm = (effects.diagonal() - effects.sum(1)) / others
    angles = (cosines.sum(1) - cosines.diagonal()) / others
    least = max(HARM, BEYOND * float(harm.median()))
    return [
        f"'{name}' is far from the rest and may better stand alone: without it the losses of the "
        f"others would be lower by {float(harm[task]):.0%} (the usual task: "
        f"{float(harm.median()):.0%}); the mean cosine of its task vector with theirs is "
        f"{float(angles[task]):.2f}"
        for task, name in enumerate(names)
        if float(harm[task]) > least
    ]


def _split(state: State, affinities: Sequence[Tensor]) -> Split:
    """Two merges in the place of one: of the cuts by several affinities, the one that keeps most.

    What averages keep is measured at once. Averages say nothing of a merge that was learned.
    """
    names, units = state.names, len(state.layout.units)
    cuts = [halves(affinity) for affinity in affinities]
    if state.learned:
        return Split([[names[task] for task in group] for group in cuts[0]], "not measured")

    @cache
    def average(rows: tuple[int, ...]) -> float:
        """The sum over tasks."""
        weights = torch.zeros(len(names), units)
        weights[list(rows)] = 1 / len(rows)
        return sum(state.agreement([names[row] for row in rows], state.merged(weights), EXAMPLES))

    def keeps(groups_: Sequence[Sequence[int]]) -> float:
        return sum(average(tuple(group)) for group in groups_) / len(names)

    best = max(cuts, key=keeps)
    told = [[names[task] for task in group] for group in best]
    how = "agreement with the experts, as averages without learning"
    return Split(told, how, keeps([range(len(names))]), keeps(best))
