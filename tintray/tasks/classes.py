"""Kinds that choose among classes with a confidence: of an example, of a token, or yes and no."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tintray.data.labels import IGNORED, LabelColumn
from tintray.errors import DataError
from tintray.tasks.confidence import ConfidenceFilter
from tintray.tasks.kind import KINDS, Comparison, Kind, LossConfig, Words
from tintray.tasks.losses import class_loss, multi_label_loss
from tintray.tasks.outputs import Mask, cut_alike, share, stretches

LEAST_SURENESS = 0.2
"""How much surer than chance an expert must be on average, from 0 (chance) to 1 (certain)."""

_CERTAIN = 50.0  # a logit so far above the others that its probability is 1 at any temperature


class ClassKind(Kind):
    """A kind whose answers are logits of classes."""

    def logits_last(self, outputs: Tensor) -> Tensor:
        """The answers with the classes in the last dimension."""
        return outputs.movedim(self.axis, -1)

    def rows(self, outputs: Tensor, labels: Any, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """The answers that count, one row of logits each: [M, C], and their labels [M] or none."""
        if labels is None:
            return outputs.reshape(-1, outputs.shape[-1]), None
        counted = labels != IGNORED
        return outputs[counted], labels[counted]

    def read(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest class, and its probability."""
        confidence, classes = self.logits_last(outputs).softmax(-1).max(-1)
        return classes, confidence

    def compare(
        self, merged: Tensor, expert: Tensor, mask: Mask, chosen: ConfidenceFilter, loss: LossConfig
    ) -> Comparison:
        """Cross-entropy to the expert's classes."""
        merged, expert = cut_alike(merged, expert)
        agreement = self.agreement(merged.detach(), expert, mask)
        merged, expert = self.logits_last(merged), self.logits_last(expert)
        rows = (merged.detach().reshape(-1, merged.shape[-1]), expert.reshape(-1, expert.shape[-1]))
        weights = chosen.weights(*rows).view(merged.shape[:-1])
        chosen.observe(*(rows if mask is None else (of[mask.reshape(-1) > 0] for of in rows)))
        counted = None  # one answer per example: its weight counts with the loss, not in it
        if weights.ndim > 1:
            counted = weights if mask is None else weights * mask
        losses = class_loss(merged, expert, loss.labels, loss.temperature, counted)
        return Comparison(losses, share(weights, mask), agreement, share(weights > 0, mask))

    def agreement(self, merged: Tensor, expert: Tensor, mask: Mask) -> Tensor:
        """Where both predict the same class."""
        return share(merged.argmax(self.axis) == expert.argmax(self.axis), mask)

    def with_labels(self, expert: Tensor, labels: Any, mask: Mask) -> Tensor:
        """Logits that are sure of the labelled class."""
        return _certain(expert, labels)

    def parse_labels(self, column: LabelColumn) -> Any:
        """Classes int64 [N], by number or by name."""
        return column.classes()

    def unsure(self, outputs: Tensor, mask: Mask) -> str | None:
        """Whether the largest probability is hardly above chance on average."""
        total, count, classes = 0.0, 0, 2
        for rows, _ in self._row_parts(outputs, None, mask):
            total += float(rows.softmax(-1).amax(-1).double().sum())
            count, classes = count + len(rows), rows.shape[-1]
        chance = 1 / classes
        confidence = total / max(1, count)
        if not count or classes < 2 or (confidence - chance) / (1 - chance) >= LEAST_SURENESS:
            return None
        return (
            f"is unsure of nearly every example of its pool (mean confidence {confidence:.2f}, "
            f"chance is {chance:.2f})"
        )

    def constant(self, outputs: Tensor, mask: Mask) -> bool:
        """Whether one class is predicted everywhere."""
        if outputs.shape[self.axis] < 2:
            return False
        predicted = set[int]()
        for rows, _ in self._row_parts(outputs, None, mask):
            if len(rows):
                classes = rows.argmax(-1)
                predicted |= {int(classes.min()), int(classes.max())}
        return len(predicted) == 1

    def chance(self, classes: int) -> float:
        """One of all classes."""
        return 1 / classes if classes > 1 else 0.0

    def predictions(self, outputs: Tensor, labels: Any, mask: Mask) -> tuple[Tensor, Tensor, int]:
        """Predicted and true class of all that counts, and how many classes there are."""
        predicted, true, classes = [], [], 2
        for rows, known in self._row_parts(outputs, labels, mask):
            assert known is not None, "there are labels"
            predicted.append(rows.argmax(-1)[known != IGNORED])
            true.append(known[known != IGNORED].long())
            classes = rows.shape[-1]
        return torch.cat(predicted), torch.cat(true), classes

    def _row_parts(
        self, outputs: Tensor, labels: Any, mask: Mask
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """``rows`` of a few examples at a time."""
        for part in stretches(len(outputs)):
            known, counted = (None if of is None else of[part] for of in (labels, mask))
            yield self.rows(outputs[part], known, counted)


class Classification(ClassKind):
    """One class for each example: logits [N, C], labels [N]."""

    name = "classification"
    has_class_names = True
    pads = True

    def measure(self, outputs: Tensor, labels: Tensor, mask: Mask) -> dict[str, float]:
        """The share of examples whose largest logit is at the label."""
        return {"accuracy": accuracy(outputs.argmax(-1), labels)}


class TokenClassification(ClassKind):
    """One class for each word of a text: logits [N, S, C], at the first token of each word.

    Labels are a list of N tensors, int64 [words].
    """

    name = "token_classification"
    of_words = True
    dims = (3,)

    def rows(self, outputs: Tensor, labels: Any, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """One row for each word."""
        assert mask is not None, "pools of token classification say which tokens count"
        length = min(outputs.shape[1], mask.shape[1])
        outputs, mask = outputs[:, :length], mask[:, :length]
        if labels is None:
            return outputs[mask.bool()], None
        return super().rows(outputs, by_token(labels, mask), mask)

    def measure(self, outputs: Tensor, labels: list[Tensor], mask: Mask) -> dict[str, float]:
        """The share of words whose class is right."""
        return {"accuracy": accuracy(outputs.argmax(-1), by_token(labels, mask))}

    def with_labels(self, expert: Tensor, labels: Any, mask: Mask) -> Tensor:
        """Logits that are sure of each labelled word; later tokens of a word stay the expert's."""
        tokens = by_token(labels, mask)[:, : expert.shape[1]]
        return _certain(expert[:, : tokens.shape[1]], tokens)

    def parse_labels(self, column: LabelColumn) -> list[Tensor]:
        """Lists of tags, by number or by name."""
        return column.tags()

    def token_targets(
        self, inputs: Any, words: Words | None, assistant: Any, role: str
    ) -> tuple[Tensor, None]:
        """The first token of each word counts."""
        if words is None:
            raise DataError(f"{role}: token classification wants a column of words, called tokens")
        mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        for row, numbers in enumerate(words):
            last = None
            for position, word in enumerate(numbers):
                mask[row, position] = word is not None and word != last
                last = word if word is not None else last
        return mask, None


class MultiLabel(ClassKind):
    """Yes or no to each class: logits [N, C], labels 0 or 1 [N, C]."""

    name = "multi_label"
    several = True

    def rows(self, outputs: Tensor, labels: Any, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """One row, no and yes, for each example and class."""
        return _no_and_yes(outputs), None if labels is None else labels.reshape(-1).long()

    def read(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """1 for each yes and 0 for each no, [N, C], and the probability of what is said."""
        yes = outputs.sigmoid()
        return (outputs > 0).long(), yes.maximum(1 - yes)

    def compare(
        self, merged: Tensor, expert: Tensor, mask: Mask, chosen: ConfidenceFilter, loss: LossConfig
    ) -> Comparison:
        """Binary cross-entropy; each yes or no is filtered apart."""
        merged, expert = cut_alike(merged, expert)
        agreement = self.agreement(merged.detach(), expert, mask)
        rows = (_no_and_yes(merged.detach()), _no_and_yes(expert))
        weights = chosen.weights(*rows).view(merged.shape)
        chosen.observe(*rows)
        losses = multi_label_loss(merged, expert, loss.labels, weights)
        return Comparison(losses, weights.mean(1), agreement, share(weights > 0))

    def agreement(self, merged: Tensor, expert: Tensor, mask: Mask) -> Tensor:
        """Where both say yes, or both no."""
        return share((merged > 0) == (expert > 0))

    def measure(self, outputs: Tensor, labels: Tensor, mask: Mask) -> dict[str, float]:
        """F1 over all examples and classes together."""
        said, true = outputs > 0, labels > 0.5
        right = (said & true).sum().item()
        total = said.sum().item() + true.sum().item()
        return {"micro_f1": 2 * right / total if total else 1.0}

    def with_labels(self, expert: Tensor, labels: Tensor, mask: Mask) -> Tensor:
        """Logits that are sure of each yes and no."""
        return _CERTAIN * (2 * labels - 1)

    def parse_labels(self, column: LabelColumn) -> Tensor:
        """Lists of classes, or one 0 or 1 for each class, as float [N, C]."""
        width = column.answers.width
        answers = torch.zeros(len(column.values), width)
        for row, value in enumerate(column.values):
            if not isinstance(value, list | tuple | np.ndarray):
                raise DataError(
                    f"{column.where} holds {value!r:.40}; expected a list of classes, or {width} "
                    "zeros and ones"
                )
            if len(value) == width and all(not isinstance(v, str) and v in (0, 1) for v in value):
                answers[row] = torch.tensor([float(v) for v in value])
            else:
                for one in value:
                    answers[row, column.index(one)] = 1
        return answers

    def constant(self, outputs: Tensor, mask: Mask) -> bool:
        """Whether each class is answered alike for every example."""
        return bool(((outputs > 0) == (outputs[:1] > 0)).all())

    def chance(self, classes: int) -> float:
        """Of two answers, one."""
        return 0.5 if classes > 1 else 0.0


CLASSIFICATION = KINDS[Classification.name]


def by_token(words: list[Tensor], mask: Mask) -> Tensor:
    """Labels of words as labels of tokens, int64 [N, S]: at the first of each word, else -100."""
    assert mask is not None, "pools of token classification say which tokens count"
    tokens = torch.full(mask.shape, IGNORED, dtype=torch.int64)
    for row, labels in enumerate(words):
        places = mask[row].nonzero().flatten()
        count = min(len(places), len(labels))  # a text that was cut has fewer words
        tokens[row, places[:count]] = labels[:count]
    return tokens


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The share of what counts that is right; both [N] or [N, S], cut to the shorter S."""
    predicted, labels = cut_alike(predicted, labels)
    counted = labels != IGNORED
    return (predicted == labels)[counted].float().mean().item()


def _no_and_yes(logits: Tensor) -> Tensor:
    """Independent answers [N, C] as choices between two classes, [N · C, 2]: no, yes."""
    flat = logits.reshape(-1)
    return torch.stack([torch.zeros_like(flat), flat], -1)


def _certain(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [..., C] that are sure of labels [...]; as given where a label is none."""
    one = functional.one_hot(labels.clamp_min(0), logits.shape[-1]).to(logits)
    return torch.where((labels == IGNORED).unsqueeze(-1), logits, _CERTAIN * (2 * one - 1))
