"""Which tasks could share a tint: how far apart their tints are, and what exchanging them costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from tintray.errors import TintrayError
from tintray.jobs.records import Record
from tintray.jobs.watching.subject import Subject
from tintray.models.structure import copy_on, head_modules
from tintray.tasks.outputs import Outputs, cut_alike
from tintray.tinting.drift import parting
from tintray.tinting.self_labels import predict
from tintray.tinting.tint_layers import with_low_rank
from tintray.vectors.task_vectors import DOWN, UP

MAY_LOSE = 0.01
"""Agreement that either of two tasks may lose under the other's tint, and still could share it."""


@dataclass(frozen=True)
class Swap(Record):
    """A task whose tint could take this one's place. Agreements are with the task's own expert."""

    task: str
    distance: float  # of what the tints add: 0 alike, 1 unrelated, √2 opposite
    here: float | None = None  # this task's agreement under the other's tint; None: not measured
    there: float | None = None  # the other's under this task's
    here_before: float | None = None  # each under its own
    there_before: float | None = None
    could_share: bool | None = None  # whether neither loses more than a point


def swaps(
    known: Subject, answers: Mapping[str, Outputs], nearest: int, notes: list[str]
) -> list[Swap]:
    """Every task whose tint has the same shape, the nearest first; those are exchanged.

    ``answers`` over the pool are those of the "tinted" model and of the "expert".
    What is exchanged is what a task owns beside its head; its head, where it owns nothing else.
    """
    merge, name = known.merge, known.entry.name
    tensors, what = _exchanged(known)
    others = [task for task in merge.tasks if task != name]
    if not tensors:
        notes.append("the task owns no learned tensors of its model: there is no tint to share")
        return []
    notes.append(f"what is compared and exchanged with other tasks is {what}")
    own = _steps(known, known.tint, tensors)
    found, apart = [], []
    for other in others:
        tint = merge.tint(other)
        if all(n in tint and tint[n].shape == known.tint[n].shape for n in tensors):
            found.append(Swap(other, parting(own, _steps(known, tint, tensors))))
        else:
            apart.append(other)
    if apart:
        more = f" and {len(apart) - 6} more" if len(apart) > 6 else ""
        notes.append(
            f"tints of other shapes, which cannot be exchanged with this one: "
            f"{', '.join(apart[:6])}{more}"
        )
    found.sort(key=lambda swap: swap.distance)
    return [
        _measured(known, answers, swap, tensors, notes) if n < nearest else swap
        for n, swap in enumerate(found)
    ]


def _exchanged(known: Subject) -> tuple[list[str], str]:
    """Names of the tensors that are exchanged, and what they are."""
    models = dict(known.expert.named_parameters())
    heads = tuple(f"{path}." for path in head_modules(known.expert))
    owned = [name for name in known.tint if name.removesuffix(UP).removesuffix(DOWN) in models]
    beside = [name for name in owned if not name.startswith(heads)]
    return (beside, "the tint beside the head") if beside else (owned, "the head")


def _steps(known: Subject, tint: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """What a tint adds: products as they are, and whole tensors less the base's."""
    part = {name: tint[name] for name in names}
    zero = {
        n.removesuffix(UP): known.shared[n.removesuffix(UP)] * 0 for n in part if n.endswith(UP)
    }
    whole = with_low_rank(zero, part)
    return {
        name: tensor - known.shared[name] if name in known.shared and name not in zero else tensor
        for name, tensor in whole.items()
    }


def _measured(
    known: Subject,
    answers: Mapping[str, Outputs],
    swap: Swap,
    names: Sequence[str],
    notes: list[str],
) -> Swap:
    """The same with agreements, each way; a note where the other's expert or pool is gone."""
    try:
        other = Subject.of(known.merge, swap.task, len(known.pool), known.base)
    except TintrayError as error:
        notes.append(f"'{swap.task}' was not exchanged: {error}")
        return swap
    experts = answers["expert"]
    before = _agreement(known, answers["tinted"], experts)
    here = _agreement(known, _answers(known, _with_tint(known, other.tint, names)), experts)
    theirs = _answers(other, other.expert)
    there = _agreement(other, _answers(other, _with_tint(other, known.tint, names)), theirs)
    there_before = _agreement(other, _answers(other, known.merge.for_task(swap.task)), theirs)
    lost = max(before - here, there_before - there)
    told = replace(swap, here=here, there=there, could_share=lost <= MAY_LOSE)
    return replace(told, here_before=before, there_before=there_before)


def _answers(known: Subject, module: nn.Module) -> Outputs:
    """Those of a model of this task, over its pool."""
    there = copy_on(module, known.device)
    return predict(there, known.pool, known.kind, device=known.device)


def _agreement(known: Subject, answers: Outputs, experts: Outputs) -> float:
    """Agreement of answers for this task with its expert's."""
    if isinstance(answers, Tensor) and isinstance(experts, Tensor):
        answers, experts = cut_alike(answers, experts)
    return known.kind.mean_agreement(answers, experts, known.pool.mask)


def _with_tint(known: Subject, tint: Mapping[str, Tensor], names: Sequence[str]) -> nn.Module:
    """A model of this task with tensors of another tint; the backbone stays as it is."""
    module = known.merge.for_task(known.entry.name)
    tensors = with_low_rank(known.merge.backbone, {name: tint[name] for name in names})
    for name in {name.removesuffix(UP).removesuffix(DOWN) for name in names}:
        module.get_parameter(name).data = tensors[name]
    return module
