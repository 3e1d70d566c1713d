"""What the text zoo is made of, as plain values; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.zoos.recipe import Schedule
from benchmarks.zoos.text_tasks import TASKS


@dataclass(frozen=True)
class TextRecipe:
    """One text zoo: how experts are trained, and on which tasks; the base comes from PyPI."""

    tasks: tuple[str, ...] = TASKS
    max_tokens: int = 48
    fine_tuning: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=2,
            learning_rate=1e-4,
            weight_decay=0.01,
            head_epochs=30,
            head_learning_rate=3e-3,
            warmup=0.1,
        )
    )
    examples: int | None = 3000  # of each training set; None is all
    seed: int = 0
    version: int = 1  # to be raised when the code that follows the recipe changes its results


TEXT = TextRecipe()
