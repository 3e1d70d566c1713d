"""The step of a task group as a GPU wants it: nothing is done task by task.

It computes what ``TaskGroup`` does, but for rounding: tint layers and heads of all tasks are one
array each, examples lie on the device, losses of a micro-batch are one, and one optimiser moves all
rows. The kernels of a micro-batch are recorded once, and from then on started together. A round
waits for the device once, for its metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tintray.numerics.graphs import Recordings
from tintray.numerics.layout import Theta
from tintray.numerics.stacked_batch import StackedBatch
from tintray.pools import stacked_pools
from tintray.pools.stacked_pools import StackedPools
from tintray.tasks.confidence import ConfidenceFilter
from tintray.tasks.outputs import Outputs
from tintray.tinting import stacked_tints
from tintray.tinting.draws import Draw
from tintray.tinting.on_demand import DrawnLabels
from tintray.tinting.stacked_tints import StackedTints
from tintray.tinting.step import GroupResult, StepSettings, TaskGroup, TaskState
from tintray.tinting.tint_layers import FusedModel

_NEVER = -1e4
"""The logit of a class that a task does not have."""

_SIZE, _ROOM = 16, 8
"""Micro-batches are filled up to a multiple, and rooms to a power of two times this: few shapes."""


def form_group(
    tasks: Sequence[TaskState],
    fused: FusedModel,
    gradient: Tensor,
    settings: StepSettings,
    *,
    stacked: bool | None = None,
) -> TaskGroup:
    """A task group in the form that suits where it computes, or as one if it is to be ``stacked``.

    Not every module can be run for many tasks at once: some look at numbers to decide what to do.
    So it is tried on an example of each task, and where that fails tasks part.
    """
    wanted = gradient.is_cuda if stacked is None else stacked
    if not (wanted and can_stack(tasks, fused, settings)):
        return TaskGroup(tasks, fused, gradient, settings)
    group = StackedGroup(tasks, fused, gradient, settings)
    try:
        group.rehearse()
    except RuntimeError:
        for task in tasks:
            task.start_optimiser()
        return TaskGroup(tasks, fused, gradient, settings)
    return group


def can_stack(tasks: Sequence[TaskState], fused: FusedModel, settings: StepSettings) -> bool:
    """Whether a group's tasks can be computed as one; others part where they have to.

    They must be of one kind, one answer per example, in pools and tint layers that are alike but
    for the number of classes. Statistics of batches, features, and filters that remember what they
    saw are each task's own.
    """
    kind = tasks[0].kind
    answers = [_known(task) for task in tasks]
    filters = {_filter(task, settings) for task in tasks}
    return (
        not fused.parts_norms
        and not settings.features
        and len(filters) == 1
        and filters.pop()[0] in ("none", "agreement")
        and all(task.kind is kind for task in tasks)
        and all(isinstance(of, Tensor) and of.ndim == 2 for of in answers)
        and (kind.pads or len({_width(task) for task in tasks}) == 1)
        and stacked_pools.can_stack([task.pool for task in tasks])
        and stacked_tints.can_stack([task.layer for task in tasks])
    )


def _filter(task: TaskState, settings: StepSettings) -> tuple[str, float]:
    chosen = task.confidence_filter or ConfidenceFilter(settings.filter)
    return chosen.filter, chosen.temperature


def _known(task: TaskState) -> Outputs:
    """Some of the expert's answers."""
    return task.labels.known if isinstance(task.labels, DrawnLabels) else task.labels


def _width(task: TaskState) -> int:
    """How many classes or values a task has."""
    answers = _known(task)
    assert isinstance(answers, Tensor), "stacked tasks have one answer per example"
    return answers.shape[1]


@dataclass(frozen=True)
class _Micro:
    """The fixed tensors of all micro-batches of one shape, on the device.

    ``index`` int64 [3, N]: each example's task, its place, and its number; ``counts`` [N]: 0 for
    those that fill up; ``inputs`` where pools do not lie there.
    """

    index: Tensor
    counts: Tensor
    labels: Tensor
    room: int
    width: int
    inputs: dict[str, Tensor] | None


class StackedGroup(TaskGroup):
    """A fixed set of tasks that steps as one array; see the module.

    Tint layers become views of arrays that all tasks share.
    """

    def __init__(
        self,
        tasks: Sequence[TaskState],
        fused: FusedModel,
        gradient: Tensor,
        settings: StepSettings,
    ) -> None:
        super().__init__(tasks, fused, gradient, settings)
        device, count = gradient.device, len(self.tasks)
        self._tints = StackedTints(self.tasks)
        self._pools = StackedPools([t.pool for t in self.tasks], device, fused.pad_token)
        self._theta = torch.empty_like(gradient)
        self._totals = torch.zeros(count, 3, dtype=torch.float64, device=device)
        self._moving = torch.zeros(count, dtype=torch.bool, device=device)
        self._pace = torch.zeros((), device=device)
        widths = [_width(task) for task in self.tasks]
        self._classes = max(widths)
        self._allowed = None
        if len(set(widths)) > 1:
            numbers = torch.arange(self._classes)
            self._allowed = torch.stack([numbers < width for width in widths]).to(device)
        self._numbers = {task.name: number for number, task in enumerate(self.tasks)}
        self._micros: dict[tuple[int, int, int], _Micro] = {}
        self._recordings = Recordings(device)

    def step(
        self,
        theta: Theta | None,
        round_: int,
        pace: float,
        *,
        draws: Mapping[str, Draw] | None = None,
    ) -> GroupResult:
        """See ``TaskGroup.step``; θ must be given."""
        assert theta is not None, "a stacked group is given its backbone"
        self._take(theta)
        tasks, rows = self._drawn(round_, draws)
        numbers = [self._numbers[task.name] for task in tasks]
        for tensor in (self._gradient, self._totals):
            tensor.zero_()
        self._tints.zero_gradients()
        for key, micro in self._filled(numbers, rows):
            self._recordings.run(key, lambda micro=micro: self._compute(micro))  # type: ignore[misc]
        moving = torch.zeros(len(self.tasks), dtype=torch.bool)
        moving[numbers] = True
        self._moving.copy_(moving)
        self._pace.fill_(pace)
        self._recordings.run("update", self._update)
        metrics = self._metrics(tasks, self._totals.cpu()[numbers], list(map(len, rows)), round_)
        return GroupResult(self._gradient, metrics)

    def rehearse(self) -> None:
        """Run an example of each task, and forget what came of it; RuntimeError where it fails."""
        self._theta.zero_()
        tasks, rows = self._drawn(0, {task.name: (0, 1) for task in self.tasks})
        for _, micro in self._filled([self._numbers[task.name] for task in tasks], rows):
            self._compute(micro)
        self._micros.clear()

    def _take(self, theta: Theta) -> None:
        """Copy θ to where recordings read it."""
        start = 0
        for piece in [theta] if isinstance(theta, Tensor) else theta:
            self._theta[start : start + len(piece)].copy_(piece)
            start += len(piece)

    def _filled(
        self, numbers: Sequence[int], rows: Sequence[Tensor]
    ) -> Iterator[tuple[tuple[int, int, int], _Micro]]:
        """The micro-batches of a round, one after another, in the tensors of their shape."""
        owner = torch.cat([torch.full((len(r),), n) for n, r in zip(numbers, rows, strict=True)])
        row = torch.cat(list(rows))
        for start in range(0, len(owner), self._settings.micro_batch):
            stretch = slice(start, start + self._settings.micro_batch)
            yield self._micro(owner[stretch], row[stretch])

    def _micro(self, owner: Tensor, row: Tensor) -> tuple[tuple[int, int, int], _Micro]:
        count = len(owner)
        size = -(-count // _SIZE) * _SIZE
        # What fills up is the last task's first example again, which counts for nothing.
        owner = torch.cat([owner, owner[-1:].expand(size - count)])
        row = torch.cat([row, row[-1:].expand(size - count)])
        tasks = list(dict.fromkeys(owner.tolist()))  # each has one stretch
        sizes = owner.bincount()[tasks]
        room = _ROOM
        while room < int(sizes.max()):
            room *= 2
        ends = sizes.cumsum(0)
        position = torch.arange(size) - (ends - sizes).repeat_interleave(sizes)
        parts = list(zip(tasks, torch.split(row, sizes.tolist()), strict=True))
        width = max(self._pools.width(task, rows) for task, rows in parts)
        number = row + self._pools.starts[owner]
        index = torch.stack([owner, owner * room + position, number])
        given = self._pools.host_batch(parts)
        key = (size, room, width)
        micro = self._micros.get(key)
        if micro is None:
            micro = self._micros[key] = self._new_micro(size, room, width, given)
        self._send(micro.index, index)
        self._send(micro.counts, (torch.arange(size) < count).float())
        self._send(micro.labels, torch.cat([self._answers(task, rows) for task, rows in parts]))
        for name, tensor in (given or {}).items():
            self._send(micro.inputs[name], tensor)  # type: ignore[index]
        return key, micro

    def _new_micro(
        self, size: int, room: int, width: int, given: Mapping[str, Tensor] | None
    ) -> _Micro:
        device = self._gradient.device
        inputs = None
        if given is not None:
            inputs = {name: torch.empty_like(t, device=device) for name, t in given.items()}
        return _Micro(
            torch.empty(3, size, dtype=torch.int64, device=device),
            torch.empty(size, device=device),
            torch.empty(size, self._classes, device=device),
            room,
            width,
            inputs,
        )

    def _answers(self, task: int, rows: Tensor) -> Tensor:
        """The expert's answers to examples of a task, as wide as those of all tasks."""
        answers = self.tasks[task].labels[rows]
        assert isinstance(answers, Tensor)
        missing = self._classes - answers.shape[1]
        return torch.nn.functional.pad(answers.float(), (0, missing), value=_NEVER)

    def _send(self, to: Tensor, tensor: Tensor) -> None:
        if to.is_cuda:  # pinned, so that it is under way while the next is put together
            tensor = tensor.pin_memory()
        to.copy_(tensor, non_blocking=True)

    # -- what runs on the device, and is recorded --------------------------------------------------

    def _compute(self, micro: _Micro) -> None:
        """Add the gradients and the metrics (loss, agreement, selected) of one micro-batch."""
        self._fused.bind(self._theta, self._gradient)
        owner, place, number = micro.index
        batch = StackedBatch(self._tints.tensors, owner, place, micro.room, len(self.tasks))
        inputs = self._pools.inputs(number, owner, micro.width, micro.inputs)
        output = self._fused.answer_together(inputs, batch, self._settings.precision)
        output = output[:, : self._classes]
        if self._allowed is not None:
            output = output.masked_fill(~self._allowed.index_select(0, owner), _NEVER)
        task = self.tasks[0]
        assert task.confidence_filter is not None  # the constructor has seen to it
        comparison = task.kind.compare(
            output, micro.labels, None, task.confidence_filter, self._loss
        )
        losses = comparison.losses * comparison.weights * micro.counts
        found = [losses.detach(), comparison.agreement, comparison.selected]
        each = torch.stack(found, 1) * micro.counts[:, None]
        self._totals += (batch.one_hot.t() @ each).double()
        (losses.sum() / self._settings.batch_size).backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        """Move the tint layers, if all that they would move along is finite."""
        finite = self._totals.isfinite().all()
        self._tints.update(self._moving & finite, self._pace)
