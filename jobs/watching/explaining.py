"""What the tint layer of a task learned: how far it went, what it changed, whose it could share.

The merge is held against the task's expert and against itself without the tint: the merged backbone
under the expert's own layers, which is where a fit begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import load_merge, locate
from tintray.jobs.events import OnEvent, PhaseStarted, ignore
from tintray.jobs.records import Record
from tintray.jobs.watching.changed import Changes, changes
from tintray.jobs.watching.subject import Subject
from tintray.jobs.watching.swapping import Swap, swaps
from tintray.models.attention import attention_heads
from tintray.models.structure import backbone_names, copy_on
from tintray.numerics.layout import block_of
from tintray.tasks.outputs import Outputs
from tintray.tinting.drift import Direction, Known, by_head, directions, distance
from tintray.tinting.self_labels import predict
from tintray.tinting.tint_layers import pooled, with_low_rank
from tintray.vectors.similarity import cka
from tintray.vectors.task_vectors import DOWN, UP

EXAMPLES, SHOWN, NEAREST = 256, 12, 5
_MATRICES = 40  # whose directions are told: those that went furthest


@dataclass(frozen=True)
class TensorDrift(Record):
    """One tensor of the tint. Distances are shares of the other tensor's size; None: no other."""

    tensor: str
    shape: Sequence[int]
    shared: str | None  # what it is held against: "backbone", "base", or nothing
    from_expert: float | None
    from_shared: float | None
    directions: Sequence[Direction]  # of the expert's step, the largest first


@dataclass(frozen=True)
class HeadDrift(Record):
    """The heads of one attention; distances as of tensors."""

    attention: str
    from_expert: Sequence[float]
    from_shared: Sequence[float]


@dataclass(frozen=True)
class Features(Record):
    """How alike two models' features are at one layer, by linear CKA; None where it says nothing.

    "backbone" is the merged backbone without the tint.
    """

    layer: str
    backbone_expert: float | None
    tinted_expert: float | None
    backbone_tinted: float | None


@dataclass(frozen=True)
class Explanation(Record):
    """What a tint layer learned."""

    of: str  # the merge, "name/v1"
    task: str
    kind: str
    site: str
    examples: int  # of its pool
    tensors: Sequence[TensorDrift]
    heads: Sequence[HeadDrift]
    features: Sequence[Features]
    changes: Changes
    swaps: Sequence[Swap]  # with other tasks of the merge, the nearest first
    notes: Sequence[str]  # what has no meaning here, and why


def explain(
    merge: str,
    task: str,
    *,
    catalog: str | None = None,
    store: str | None = None,
    examples: int = EXAMPLES,
    nearest: int = NEAREST,
    on_event: OnEvent | None = None,
) -> Explanation:
    """What the tint layer of ``task`` learned, on ``examples`` of its pool.

    Its tint is exchanged with those of the ``nearest`` other tasks.

    Raises NotFoundError for a task that the merge has not; CheckpointError, DataError where its
    expert, its base or its pool is gone, or is another one by now.
    """
    told = on_event or ignore
    opened = load_merge(locate(merge, chosen(store, catalog)[1]))
    told(PhaseStarted("explaining", f"reading the expert and the pool of '{task}'"))
    known = Subject.of(opened, task, examples)
    told(PhaseStarted("explaining", "holding it against its expert"))
    tensors, heads, notes = _drift(known)
    answers, features = {}, {}
    for name, module in known.modules.items():
        answers[name], features[name] = _seen(known, module)
    told(PhaseStarted("explaining", f"exchanging it with the tints of {nearest} others"))
    return Explanation(
        of=opened.manifest.ref,
        task=task,
        kind=known.kind.name,
        site=opened.manifest.site,
        examples=len(known.pool),
        tensors=tensors,
        heads=heads,
        features=_alike(features),
        changes=changes(opened, known.entry, known.kind, known.pool, answers, SHOWN),
        swaps=swaps(known, answers, nearest, notes),
        notes=notes,
    )


def _drift(known: Subject) -> tuple[list[TensorDrift], list[HeadDrift], list[str]]:
    """Each tensor of the tint, and each attention, beside the expert's and the shared one."""
    tensors = _tensors(known)
    went = {name: distance(of.tinted, of.shared) for name, of in tensors.items()}
    told = set(sorted(went, key=lambda name: -(went[name] or 0.0))[:_MATRICES])
    drifts = [
        TensorDrift(
            tensor=name,
            shape=tuple(of.tinted.shape),
            shared=of.held_against,
            from_expert=distance(of.tinted, of.expert),
            from_shared=went[name],
            directions=directions(of) if name in told else (),
        )
        for name, of in tensors.items()
    ]
    heads = _heads(known, tensors)
    notes = []
    if not tensors:
        notes.append("the task owns no tensors that its expert has: there is no drift to tell")
    if tensors and not heads:
        notes.append("no attention is part of the tint: there is no drift by attention head")
    alone = [drift.tensor for drift in drifts if drift.shared is None]
    if alone:
        notes.append(
            f"other tasks have no {', '.join(alone[:4])}{' …' if len(alone) > 4 else ''}: heads "
            "are held against the expert's alone"
        )
    if whole := [drift.tensor for drift in drifts if drift.shared == "base"]:
        notes.append(
            f"the merged backbone has no {whole[0]}{' …' if len(whole) > 1 else ''}, which every "
            "task owns whole: the base's stands in"
        )
    return drifts, heads, notes


def _tensors(known: Subject) -> dict[str, Known]:
    """What the task owns or adds to, under the names of its model."""
    whole = with_low_rank(known.merge.backbone, known.tint)
    owned = dict.fromkeys(name.removesuffix(UP).removesuffix(DOWN) for name in known.tint)
    theirs = dict(known.expert.named_parameters())
    return {
        name: Known(
            whole[name], theirs[name].detach(), known.shared.get(name),
            known.merge.backbone.get(name),
        )
        for name in owned if name in theirs
    }  # fmt: skip


def _heads(known: Subject, tensors: Mapping[str, Known]) -> list[HeadDrift]:
    """The attentions of which the tint has a part."""
    by_block: dict[str, list[str]] = {}
    splits = attention_heads(known.expert)
    for name in tensors:
        if name in splits:
            by_block.setdefault(splits[name].block, []).append(name)
    found = []
    for block, names in by_block.items():
        own = [(splits[name], tensors[name]) for name in names]
        theirs = [(split, of.tinted, of.expert) for split, of in own]
        shared = [(split, of.tinted, of.shared) for split, of in own if of.shared is not None]
        found.append(HeadDrift(block, by_head(theirs), by_head(shared)))
    return found


def _seen(known: Subject, module: nn.Module) -> tuple[Outputs, dict[str, Tensor]]:
    """A model's answers over the pool, and the features [N, d] at each of its layers."""
    module = copy_on(module, known.device)
    captured: dict[str, list[Tensor]] = {}

    def keep(path: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.is_floating_point() and first.ndim > 1:
            captured.setdefault(path, []).append(pooled(first))

    hooks = []
    for path in dict.fromkeys(block_of(name) for name in backbone_names(module)):
        try:
            layer = module.get_submodule(path)
        except AttributeError:  # a tensor of the model itself
            continue
        hooks.append(layer.register_forward_hook(lambda _, __, out, path=path: keep(path, out)))
    try:
        answers = predict(module, known.pool, known.kind, device=known.device)
    finally:
        for hook in hooks:
            hook.remove()
    whole = {path: torch.cat(parts).to("cpu") for path, parts in captured.items()}
    return answers, {path: of for path, of in whole.items() if len(of) == len(known.pool)}


def _alike(features: Mapping[str, Mapping[str, Tensor]]) -> list[Features]:
    """Layer by layer, in the model's order."""
    backbone, tinted, expert = (features[name] for name in ("backbone", "tinted", "expert"))
    return [
        Features(
            layer,
            cka(backbone[layer], expert[layer]),
            cka(tinted[layer], expert[layer]),
            cka(backbone[layer], tinted[layer]),
        )
        for layer in expert
        if layer in backbone and layer in tinted
    ]
