"""Kinds of task: how answers are compared, and what a loss, an agreement and a metric are for each.

Answers are one tensor [N, …]: a row of logits or values per example, logits per token [N, S, C], or
maps [N, C, H, W]. Those of a language model are cut to the likeliest tokens (``TopTokens``). Where
tasks of different size share a batch, answers come padded: ``matched`` cuts both sides alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tintray.errors import DataError
from tintray.tasks import objectives
from tintray.tasks.confidence import ConfidenceFilter
from tintray.tasks.kinds import Kind as Kind
from tintray.tasks.objectives import Distance, Labels, TopTokens

Outputs = Tensor | TopTokens
"""What an expert answered on N examples."""

OF_TOKENS = ("token_classification", "language_modelling", "seq2seq")
WRITING = ("language_modelling", "seq2seq")
"""Kinds whose answers are distributions over a vocabulary, one for each token."""
DENSE = ("segmentation", "depth", "normals")
CLASSES = ("classification", "multi_label", "token_classification", "segmentation")
"""Kinds that choose with a confidence: a class of an example, a token, a pixel; yes or no."""
TOP_TOKENS = 64
"""How many tokens of a language model's distribution are kept."""

_NONE = -100
_NEAR_DEGREES = 11.25  # the usual threshold for surface normals
_NEAR_RATIO = 1.25  # and that for depths (δ < 1.25)
_NEAR_SPREAD = 0.25  # of the expert's standard deviation, for single values


def chosen(outputs: Outputs, index: Tensor | slice) -> Outputs:
    """The outputs for the examples at ``index``."""
    if isinstance(outputs, TopTokens):
        return TopTokens(outputs.indices[index], outputs.logs[index])
    return outputs[index]


def moved(outputs: Outputs, device: torch.device | str) -> Outputs:
    """The same outputs on a device."""
    if isinstance(outputs, TopTokens):
        return TopTokens(outputs.indices.to(device), outputs.logs.to(device))
    return outputs.to(device)


def as_tensors(outputs: Outputs) -> dict[str, Tensor]:
    """Outputs as named tensors, to be kept as an artifact."""
    if isinstance(outputs, TopTokens):
        return {"indices": outputs.indices.int(), "logs": outputs.logs}
    return {"logits": outputs}


def from_tensors(tensors: Mapping[str, Tensor]) -> Outputs:
    """What ``as_tensors`` took apart."""
    if "logs" in tensors:
        return TopTokens(tensors["indices"].long(), tensors["logs"])
    return tensors["logits"]


def reduced(kind: Kind, answers: Tensor) -> Outputs:
    """What is kept of answers: all, or of a language model's [N, S, V] the likeliest tokens."""
    if kind in WRITING:
        return objectives.top_tokens(answers, TOP_TOKENS)
    return answers


def matched(merged: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
    """Both without what is padding in one of them: more classes, or more tokens."""
    for dim in range(1, merged.ndim):
        size = min(merged.shape[dim], expert.shape[dim])
        merged, expert = merged.narrow(dim, 0, size), expert.narrow(dim, 0, size)
    return merged, expert


def check_outputs(kind: Kind, outputs: Outputs, width: int, role: str) -> None:
    """Refuse answers whose shape is not that of the kind of task.

    Raises
    ------
    DataError
        Naming the shape found and the kind.
    """
    if isinstance(outputs, TopTokens):
        return
    ndim = {"token_classification": (3,), "segmentation": (4,), "normals": (4,), "depth": (3, 4)}
    shape = list(outputs.shape)
    channels = 1 if kind in DENSE else -1
    wrong_width = kind != "depth" and outputs.ndim > 1 and shape[channels] != width
    if outputs.ndim not in ndim.get(kind, (2,)) or wrong_width:
        raise DataError(
            f"{role} gives outputs {shape}; expected those of kind '{kind}' with {width} answers, "
            "is it the right kind of task for this model?"
        )


@dataclass(frozen=True)
class Compared:
    """A batch of one task, per example [N]: loss, weight, share of agreeing and of kept answers."""

    losses: Tensor
    weights: Tensor
    agreement: Tensor
    kept: Tensor


def compare(
    kind: Kind,
    merged: Tensor,
    expert: Outputs,
    mask: Tensor | None,
    *,
    judge: ConfidenceFilter,
    labels: Labels,
    temperature: float,
    distance: Distance = "l1",
) -> Compared:
    """The loss of every example of a batch, and how many agree and are kept.

    Examples (or each yes or no, token, pixel) that the judge drops weigh nothing; for kinds without
    a confidence (values, language) all are kept.
    """
    everything = torch.ones(len(merged), device=merged.device)
    if isinstance(expert, TopTokens):
        length = min(merged.shape[1], expert.logs.shape[1])
        merged = merged[:, :length]
        expert = TopTokens(expert.indices[:, :length], expert.logs[:, :length])
        losses = objectives.token_loss(merged, expert, mask)
        agreed = _share(merged.argmax(-1) == expert.indices[..., 0], mask)
        return Compared(losses, everything, agreed, everything)
    merged, expert = matched(merged, expert)
    agreed = agreement_each(kind, merged.detach(), expert, mask)
    if kind in ("regression", "depth", "normals"):
        losses = _value_loss(kind, merged, expert, distance)
        return Compared(losses, everything, agreed, everything)
    if kind == "multi_label":
        weights = judge.weights(_yes_or_no(merged.detach()), _yes_or_no(expert)).view(merged.shape)
        judge.observe(_yes_or_no(merged.detach()), _yes_or_no(expert))
        losses = objectives.multi_label_loss(merged, expert, labels, weights)
        return Compared(losses, weights.mean(1), agreed, _share(weights > 0))
    if kind == "segmentation":
        merged, expert = merged.movedim(1, -1), expert.movedim(1, -1)
    rows = (merged.detach().reshape(-1, merged.shape[-1]), expert.reshape(-1, expert.shape[-1]))
    weights = judge.weights(*rows).view(merged.shape[:-1])
    judge.observe(*(rows if mask is None else (of[mask.reshape(-1) > 0] for of in rows)))
    if kind == "classification":
        losses = objectives.class_loss(merged, expert, labels, temperature)
        return Compared(losses, weights, agreed, (weights > 0).float())
    counted = weights if mask is None else weights * mask
    losses = objectives.class_loss(merged, expert, labels, temperature, counted)
    return Compared(losses, _share(weights, mask), agreed, _share(weights > 0, mask))


def _yes_or_no(logits: Tensor) -> Tensor:
    """Independent answers [N, C] as choices between two classes, [N · C, 2]: no, yes."""
    flat = logits.reshape(-1)
    return torch.stack([torch.zeros_like(flat), flat], -1)


def _value_loss(kind: Kind, merged: Tensor, expert: Tensor, distance: Distance) -> Tensor:
    if kind == "normals":
        return objectives.direction_loss(merged, expert)
    return objectives.value_loss(merged, expert, distance)


def agreement_each(kind: Kind, merged: Tensor, expert: Outputs, mask: Tensor | None) -> Tensor:
    """[N]: the share of each example's answers on which merge and expert agree.

    Same class (of the example, the token, the pixel), same yes or no; depths within a factor of
    1.25, normals within 11.25 degrees, values within a quarter of the expert's spread.
    """
    if isinstance(expert, TopTokens):
        length = min(merged.shape[1], expert.indices.shape[1])
        return _share(merged[:, :length].argmax(-1) == expert.indices[:, :length, 0], mask)
    if kind in ("classification", "token_classification"):
        return _share(merged.argmax(-1) == expert.argmax(-1), mask)
    if kind == "segmentation":
        return _share(merged.argmax(1) == expert.argmax(1))
    if kind == "multi_label":
        return _share((merged > 0) == (expert > 0))
    if kind == "normals":
        return _share(degrees(merged, expert) < _NEAR_DEGREES)
    if kind == "depth":
        return _share(_ratio(merged, expert) < _NEAR_RATIO)
    spread = expert.std() if len(expert) > 1 else expert.new_tensor(1.0)
    return _share((merged - expert).abs() <= _NEAR_SPREAD * spread)


def _share(same: Tensor, mask: Tensor | None = None) -> Tensor:
    """[N] from bool [N, …]: the share that is true, among what counts."""
    flat = same.float().flatten(1) if same.ndim > 1 else same.float().unsqueeze(1)
    if mask is None or same.ndim == 1:
        return flat.mean(1)
    weights = mask.float().flatten(1)
    return (flat * weights).sum(1) / weights.sum(1).clamp_min(1)


def degrees(one: Tensor, other: Tensor) -> Tensor:
    """Angles [N, H, W] between two maps of directions [N, 3, H, W]."""
    cosine = functional.cosine_similarity(one.double(), other.double(), dim=1)
    return cosine.clamp(-1, 1).arccos().rad2deg().float()


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """max(a / b, b / a); depths that are not positive are as far as can be."""
    low, high = torch.minimum(one, other), torch.maximum(one, other)
    return torch.where(low > 0, high / low.clamp_min(1e-8), torch.inf)


# -- metrics on labels -----------------------------------------------------------------------------


def any_counts(kind: Kind, labels: Any) -> bool:
    """Whether there is a label that counts: a known class or token, depth or direction."""
    if kind == "normals":
        return bool((labels != 0).any())
    if kind == "depth":
        return bool((labels > 0).any())
    parts = labels if isinstance(labels, list | tuple) else [labels]
    return any(bool((part != _NONE).any()) for part in parts)


def measure(kind: Kind, outputs: Outputs, labels: Any, mask: Tensor | None) -> dict[str, float]:
    """Metrics of outputs on labels, of ``tintray.tasks.metrics``; tables show the first of them."""
    if isinstance(outputs, TopTokens):
        tokens = outputs.indices[..., 0]
        exact = {"exact_match": _exact(tokens, labels)} if kind == "seq2seq" else {}
        return exact | {"token_accuracy": _accuracy(tokens, labels)}
    if kind == "classification":
        return {"accuracy": _accuracy(outputs.argmax(-1), labels)}
    if kind == "token_classification":
        assert mask is not None, "pools of token classification say which tokens count"
        return {"accuracy": _accuracy(outputs.argmax(-1), by_token(labels, mask))}
    if kind == "multi_label":
        return {"micro_f1": _micro_f1(outputs > 0, labels > 0.5)}
    if kind == "regression":
        error = (outputs - labels).abs().mean()
        return {"mae": float(error)}
    size = labels.shape[-2:]
    if kind == "segmentation":
        return _segmentation(_resized(outputs, size).argmax(1), labels, outputs.shape[1])
    if kind == "depth":
        return _depth(_resized(_one_channel(outputs), size)[:, 0], labels)
    found = _resized(outputs, size)
    angles = degrees(found, labels)[labels.square().sum(1) > 0]
    near = (angles < _NEAR_DEGREES).float().mean()
    return {"degrees": float(angles.mean()), "within_11_degrees": float(near)}


def by_class(
    kind: Kind, outputs: Tensor, labels: Any, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The answers that count, one row of logits each: [M, C], and their labels [M] or none.

    Answers are examples, each yes or no, tokens or pixels, by the kind of task, of ``CLASSES``.
    """
    if kind == "multi_label":
        return _yes_or_no(outputs), None if labels is None else labels.reshape(-1).long()
    if kind == "segmentation":
        outputs = (outputs if labels is None else _resized(outputs, labels.shape[-2:])).movedim(
            1, -1
        )
    elif kind == "token_classification":
        assert mask is not None, "pools of token classification say which tokens count"
        length = min(outputs.shape[1], mask.shape[1])
        outputs, mask = outputs[:, :length], mask[:, :length]
        if labels is None:
            return outputs[mask.bool()], None
        labels = by_token(labels, mask)
    if labels is None:
        return outputs.reshape(-1, outputs.shape[-1]), None
    counted = labels != _NONE
    return outputs[counted], labels[counted]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of examples whose largest logit is at the label, for logits [N, C], labels [N]."""
    return _accuracy(logits.argmax(-1), labels)


def agreement(merged: Tensor, expert: Tensor) -> float:
    """Share of examples on which merge and expert predict the same class; logits [N, C] each."""
    return (merged.argmax(-1) == expert.argmax(-1)).float().mean().item()


def by_token(words: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Labels of words as labels of tokens, int64 [N, S]: at the first of each word, else -100."""
    found = torch.full(mask.shape, _NONE, dtype=torch.int64)
    for row, labels in enumerate(words):
        places = mask[row].nonzero().flatten()
        count = min(len(places), len(labels))  # a text that was cut has fewer words
        found[row, places[:count]] = labels[:count]
    return found


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    if predicted.ndim > 1:  # what was padded to different lengths is cut alike
        length = min(predicted.shape[1], labels.shape[1])
        predicted, labels = predicted[:, :length], labels[:, :length]
    counted = labels != _NONE
    return (predicted == labels)[counted].float().mean().item()


def _exact(predicted: Tensor, labels: Tensor) -> float:
    """Share of answers [N, S] that are right at every position that counts."""
    length = min(predicted.shape[1], labels.shape[1])
    right = (predicted[:, :length] == labels[:, :length]) | (labels[:, :length] == _NONE)
    return right.all(1).float().mean().item()


def _micro_f1(found: Tensor, truth: Tensor) -> float:
    right = (found & truth).sum().item()
    total = found.sum().item() + truth.sum().item()
    return 2 * right / total if total else 1.0


def _one_channel(maps: Tensor) -> Tensor:
    return maps.unsqueeze(1) if maps.ndim == 3 else maps


def _resized(maps: Tensor, size: Any) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _segmentation(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Mean intersection over union of the classes that occur, and the share of right pixels."""
    counted = labels != _NONE
    pairs = labels[counted] * classes + predicted[counted]
    table = torch.bincount(pairs, minlength=classes * classes).view(classes, classes).double()
    right = table.diag()
    union = table.sum(0) + table.sum(1) - right
    present = table.sum(1) > 0
    return {
        "miou": float((right[present] / union[present]).mean()),
        "pixel_accuracy": float(right.sum() / table.sum()),
    }


def _depth(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Where a depth is known (positive): mean relative and mean absolute error."""
    known = labels > 0
    error = (predicted - labels).abs()[known]
    return {
        "relative_error": float((error / labels[known]).mean()),
        "absolute_error": float(error.mean()),
    }
