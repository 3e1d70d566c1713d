"""The fused multi-task step: one forward and one backward for the batches of many tasks.

A *task group* is a fixed set of tasks that is computed as one. Its step, given θ, moves the tint
layers of its tasks and returns Σₜ ∂Lₜ/∂θ; what becomes of Λ is the coordinator's business. The
result depends on θ, the round and the group alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tintray.errors import FitError
from tintray.numerics.choices import Precision
from tintray.numerics.layout import Theta
from tintray.numerics.optimiser_state import optimiser_tensors, restore_optimiser
from tintray.numerics.randomness import drawn, sample
from tintray.numerics.snapshots import Snapshots
from tintray.numerics.stacked_adam import AdamRow
from tintray.pools.pool import Pool
from tintray.tasks.classes import CLASSIFICATION
from tintray.tasks.confidence import ConfidenceFilter
from tintray.tasks.kind import Kind, LossConfig
from tintray.tasks.kinds import Distance, Filter, Labels
from tintray.tasks.losses import feature_loss, feature_variance
from tintray.tasks.outputs import Outputs
from tintray.tinting.draws import Draw
from tintray.tinting.on_demand import DrawnLabels
from tintray.tinting.tint_layers import FusedModel, TintLayer
from tintray.vectors.task_vectors import UP


@dataclass(frozen=True)
class StepSettings:
    """What every group of a job does alike.

    Attributes
    ----------
    batch_size
        Examples per task and round.
    micro_batch
        Upper bound on the examples in one forward pass; bounds memory and keeps activations in
        cache. It regroups sums, so it is part of a job's identity.
    """

    seed: int
    batch_size: int
    micro_batch: int
    labels: Labels
    filter: Filter
    temperature: float = 1.0
    precision: Precision = "float32"
    features: float = 0.0  # weight of the distance to the expert's features
    distance: Distance = "l1"  # between values, for regression and depth


@dataclass
class TaskState:
    """A task as a worker hosts it: its layers, its pool, its cached self-labels, its optimiser."""

    name: str
    layer: TintLayer
    pool: Pool
    # the expert's answers over the pool; logits [N, C] of a classifier
    labels: Outputs | DrawnLabels
    confidence_filter: ConfidenceFilter | None = None  # None: as the settings say
    features: Tensor | None = None  # the expert's features over the pool, [N, d]
    kind: Kind = CLASSIFICATION
    optimiser: torch.optim.Optimizer | AdamRow | None = field(init=False)
    snapshots: Snapshots = field(init=False)  # of the tint layer

    def __post_init__(self) -> None:
        self.watch_layer()
        self.start_optimiser()

    def start_optimiser(self) -> None:
        """Have an optimiser of its own, which has taken no step."""
        by_rate = self.layer.by_rate()
        groups = [
            {"params": [self.layer.tensors[name] for name in names], "peak": rate}
            for rate, names in by_rate.items()
        ]
        self.optimiser = torch.optim.Adam(groups, fused=True) if groups else None

    def watch_layer(self) -> None:
        """Keep states of the tensors that the layer has now."""
        own = self.layer.tensors.items()
        kept = {name: t for name, t in own if name in self.layer.rates or name.endswith(UP)}
        self.snapshots = Snapshots(kept)

    @cached_property
    def feature_variance(self) -> Tensor:
        """That of the features over the pool, for batches that have none of their own."""
        assert self.features is not None, "the fit compares no features"
        return feature_variance(self.features)

    def update(self, pace: float) -> None:
        """Move the tint layer along its gradients, at this share of its highest rates."""
        if self.optimiser is None:
            return
        assert isinstance(self.optimiser, torch.optim.Optimizer), "rows are moved together"
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * pace
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed job needs of this task; pool and labels are cached elsewhere."""
        own = self.layer.tensors
        tint = {f"tint.{name}": own[name].detach().clone() for name in self.layer.rates}
        seen = self.confidence_filter
        judge = {} if seen is None else {"judge": seen.state()}
        moments = {} if self.optimiser is None else optimiser_tensors(self.optimiser)
        return tint | judge | moments | self.snapshots.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what ``state_dict`` returned."""
        with torch.no_grad():
            for name in self.layer.rates:
                self.layer.tensors[name].copy_(state[f"tint.{name}"])
        if self.optimiser is not None:
            restore_optimiser(self.optimiser, state)
        if self.confidence_filter is not None:
            self.confidence_filter.restore(state["judge"])
        self.snapshots.load_state_dict(state)


@dataclass(frozen=True)
class TaskMetrics:
    """What one round did to one task, on its batch."""

    loss: float
    agreement: float
    selected_fraction: float


@dataclass(frozen=True)
class GroupResult:
    """Σₜ ∂Lₜ/∂θ [P] of a group, in the buffer that the next step reuses, and metrics per task."""

    gradient: Tensor
    metrics: dict[str, TaskMetrics]


@dataclass(frozen=True)
class _Piece:
    """A stretch of one task's batch that fits a micro-batch."""

    task: int
    rows: slice


class TaskGroup:
    """A fixed set of tasks that steps as one.

    ``gradient`` [P] is the buffer that every step overwrites and returns; groups that never step
    at the same time may share one. It lies where ``fused`` computes, as the tint layers do; pools
    and self-labels stay in memory, and their batches are moved there.
    """

    def __init__(
        self,
        tasks: Sequence[TaskState],
        fused: FusedModel,
        gradient: Tensor,
        settings: StepSettings,
    ) -> None:
        self.tasks = list(tasks)
        for task in self.tasks:
            task.confidence_filter = task.confidence_filter or ConfidenceFilter(settings.filter)
        self._fused = fused
        self._settings = settings
        self._loss = LossConfig(settings.labels, settings.temperature, settings.distance)
        self._gradient = gradient

    def step(
        self,
        theta: Theta | None,
        round_: int,
        pace: float,
        *,
        draws: Mapping[str, Draw] | None = None,
    ) -> GroupResult:
        """One round of this group: gradients for Λ, and one update of each tint layer.

        Parameters
        ----------
        theta
            The merged backbone, flat [P], whole or in pieces; read only. None: that which the model
            is bound to, as it is bound to it.
        round_
            0-based; decides the batches together with seed and task names.
        pace
            The share of their highest rates at which tint layers learn.
        draws
            What each task draws; those that are not in it stay as they are. None: all tasks take
            part, with as many examples as the settings say.

        Raises
        ------
        FitError
            If a task's loss is not finite; the tint layers are then left as they were.
        """
        self._gradient.zero_()
        if theta is not None:
            self._fused.bind(theta, self._gradient)
        tasks, indices = self._drawn(round_, draws)
        totals = torch.zeros(len(tasks), 3, dtype=torch.float64, device=self._gradient.device)
        sizes = list(map(len, indices))
        for micro_batch in _micro_batches(sizes, self._settings.micro_batch):
            self._accumulate(tasks, micro_batch, indices, totals)
        # where passes run elsewhere, this waits for them: once per step
        metrics = self._metrics(tasks, totals.cpu(), sizes, round_)
        for task in tasks:
            task.update(pace)
        return GroupResult(self._gradient, metrics)

    def _drawn(
        self, round_: int, draws: Mapping[str, Draw] | None
    ) -> tuple[list[TaskState], list[Tensor]]:
        """The tasks that take part, and which of its examples each draws."""
        seed, size = self._settings.seed, self._settings.batch_size
        if draws is None:
            tasks = self.tasks
            return tasks, [sample(seed, t.name, round_, len(t.pool), size) for t in tasks]
        tasks = [t for t in self.tasks if t.name in draws]
        return tasks, [drawn(seed, t.name, *draws[t.name], len(t.pool)) for t in tasks]

    @staticmethod
    def _metrics(
        tasks: Sequence[TaskState], totals: Tensor, sizes: Sequence[int], round_: int
    ) -> dict[str, TaskMetrics]:
        """Means of each task from sums over its examples [K, 3]; FitError if one is not finite."""
        means = totals / torch.tensor(sizes)[:, None]
        _check(tasks, means, round_)
        return {
            task.name: TaskMetrics(*row) for task, row in zip(tasks, means.tolist(), strict=True)
        }

    def _accumulate(
        self,
        all_tasks: Sequence[TaskState],
        pieces: Sequence[_Piece],
        indices: list[Tensor],
        totals: Tensor,
    ) -> None:
        """Add the gradients and the metrics (loss, agreement, selected) of one micro-batch."""
        rows = [indices[piece.task][piece.rows] for piece in pieces]
        tasks = [all_tasks[piece.task] for piece in pieces]
        batches = [task.pool.batch(index) for task, index in zip(tasks, rows, strict=True)]
        outputs = self._fused.forward(
            batches, [task.layer for task in tasks], self._settings.precision
        )
        device = self._gradient.device
        captured = self._fused.features() if self._settings.features else [None] * len(pieces)
        losses = []
        for piece, task, index, output, features in zip(
            pieces, tasks, rows, outputs, captured, strict=True
        ):
            assert task.confidence_filter is not None  # the constructor has seen to it
            comparison = task.kind.compare(
                output,
                task.labels[index].to(device),
                task.pool.counts(index, output.shape[1] if output.ndim > 1 else 0, device),
                task.confidence_filter,
                self._loss,
            )
            each = comparison.losses
            if features is not None and task.features is not None:
                usual = task.feature_variance.to(device)
                distance = feature_loss(features, task.features[index].to(device), usual=usual)
                each = each + self._settings.features * distance
            # Divided by the mean batch, not by what is selected: a batch of which nothing is
            # is harmless, and micro-batches add up to the same gradient as one batch.
            loss = (each * comparison.weights).sum() / self._settings.batch_size
            losses.append(loss)
            same, selected = comparison.agreement.sum(), comparison.selected.sum()
            share = torch.stack([loss.detach() * self._settings.batch_size, same, selected])
            totals[piece.task] += share.double()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def _check(tasks: Sequence[TaskState], totals: Tensor, round_: int) -> None:
    for task, finite in zip(tasks, totals.isfinite().all(1).tolist(), strict=True):
        if not finite:
            for other in tasks:
                for parameter in other.layer.parameters:
                    parameter.grad = None
            raise FitError(
                f"task '{task.name}': the loss of round {round_ + 1} is not finite; lower "
                "fit.tint_lr or fit.coefficient_lr"
            )


def _micro_batches(sizes: Sequence[int], most: int) -> Iterator[list[_Piece]]:
    """Cut the tasks' batches, in order, into micro-batches of at most so many examples."""
    current: list[_Piece] = []
    room = most
    for task, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = min(size, start + room)
            current.append(_Piece(task, slice(start, stop)))
            room -= stop - start
            start = stop
            if room == 0:
                yield current
                current, room = [], most
    if current:
        yield current
