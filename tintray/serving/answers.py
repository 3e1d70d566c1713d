"""What is answered to one example: a label with its confidence, and the values behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tintray.routing.router import Route
from tintray.tasks.kind import Kind
from tintray.tasks.kinds import KindName

_MOST_VALUES = 4096  # numbers beside a label in JSON: more would be a map or a vocabulary


@dataclass(frozen=True)
class Answer:
    """One example's answer.

    ``label`` is a class by its name (by its number where the expert names none); a list of them for
    several classes or for words; rows of numbers for pixels; a text. ``confidence`` is the
    probability of the label, in the same form. Either is None for tasks that predict values.
    ``values`` is what the model answers, as ``for_task`` gives it: logits [C], or values, per word
    or per pixel; None for a text. ``route`` is how the task was found, where none was named; of an
    example that is of no task, ``task`` is ``unknown`` and there is no more.
    """

    task: str
    version: str  # of the merge: "digits/v3"
    kind: KindName | None
    label: Any
    confidence: Any
    values: NDArray[np.float32] | None
    route: Route | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON types; many ``values`` beside a label are left out."""
        values = self.values
        left_out = values is None or (self.label is not None and values.size > _MOST_VALUES)
        route = {} if self.route is None else {"route": self.route.to_json()}
        return {
            "task": self.task,
            "version": self.version,
            "kind": self.kind,
            "label": self.label,
            "confidence": _rounded(self.confidence),
            "values": None if left_out or values is None else values.tolist(),
            **route,
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return value if value is None else round(value, 6)


@dataclass(frozen=True)
class Reader:
    """Turns what a task's model answers into answers."""

    task: str
    version: str
    kind: Kind
    names: Sequence[str] | None  # of the classes

    def answer(self, label: Any, confidence: Any, values: Tensor | None) -> Answer:
        """One answer."""
        array = None if values is None else values.numpy().astype(np.float32, copy=False)
        return Answer(self.task, self.version, self.kind.name, label, confidence, array)

    def rows(self, outputs: Tensor, masks: Sequence[Tensor | None]) -> list[Answer]:
        """The answers in outputs [N, …]; ``masks`` [1, S] say which tokens count, where some do."""
        labels, confidence = self.kind.read(outputs)
        answers = []
        for row, mask in enumerate(masks):
            values = outputs[row]
            if labels is None or confidence is None:
                answers.append(self.answer(None, None, values))
                continue
            said, sure = labels[row], confidence[row]
            if mask is not None:  # one answer for each word
                chosen = mask[0].nonzero().flatten()
                said, sure, values = said[chosen], sure[chosen], values[chosen]
            if self.kind.several:
                said, sure = (yes := said.nonzero().flatten()), sure[yes]
            answers.append(self.answer(self._named(said.tolist()), sure.tolist(), values))
        return answers

    def _named(self, numbers: Any) -> Any:
        if self.names is None or self.kind.per_pixel:
            return numbers
        if isinstance(numbers, list):
            return [self._named(number) for number in numbers]
        return self.names[numbers]


def class_names(config: Mapping[str, Any], width: int) -> list[str] | None:
    """The names that a ``config.json`` has for the classes; None if they are mere numbers."""
    by_number = config.get("id2label")
    if not isinstance(by_number, dict):
        return None
    names = [by_number.get(str(number), f"LABEL_{number}") for number in range(width)]
    generic = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return None if generic or not all(isinstance(name, str) for name in names) else names
