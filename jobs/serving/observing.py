"""A bounded sample of what a server has answered, for ``tintray monitor --from-serve``.

Of each of the newest answers of a task it keeps how sure it was and of which class: no input, and
nothing that tells who asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from tintray.errors import NotFoundError
from tintray.references.observing import Observed
from tintray.serving.answers import Answer
from tintray.tasks.registry import find_kind

_SINGLE = ("classification", "multi_label", "regression")
"""Kinds with one answer an example: others would be many numbers each."""


class Sample:
    """What is kept of the newest ``size`` answers of each task; 0 keeps nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[tuple[str, str], deque[Observed]] = {}

    def note(self, answer: Answer, live: Callable[[], set[str]]) -> None:
        """Keep what there is of an answer, and nothing of versions that are no longer ``live``."""
        if not self._size or answer.values is None or answer.kind not in _SINGLE:
            return
        outputs = torch.from_numpy(answer.values)[None]
        found = Observed.of(find_kind(answer.kind), outputs, None)
        key = answer.task, answer.version
        if key not in self._kept:
            there = live() | {answer.version}
            self._kept = {known: of for known, of in self._kept.items() if known[1] in there}
        self._kept.setdefault(key, deque(maxlen=self._size)).append(found)

    def of(self, task: str, version: str) -> dict[str, Any]:
        """What was kept of a task in a version, as JSON types.

        Raises NotFoundError if nothing is kept.
        """
        if not self._size:
            raise NotFoundError(
                "nothing is kept of what is answered; start the server with --observe 2000"
            )
        kept = self._kept.get((task, version))
        if not kept:
            raise NotFoundError(f"nothing was answered yet for task {task!r:.100} of {version}")
        numbers = {name: [float(of.numbers[name]) for of in kept] for name in kept[0].numbers}
        classes = [None if of.classes is None else of.classes[0].tolist() for of in kept]
        return {"task": task, "version": version, "numbers": numbers, "classes": classes}
