"""What a zoo is made of, as plain values: everything that, if changed, changes the zoo.

Nothing heavy is imported here, so that a finished zoo is recognised without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; learning rates are the peaks of a one-cycle schedule."""

    epochs: int
    learning_rate: float
    batch_size: int = 32
    weight_decay: float = 0.05
    head_epochs: int = 0  # passes over frozen features before anything else moves
    head_learning_rate: float = 1e-2
    warmup: float = 0.2  # share of the steps until the peak
    shift: int = 0  # pixels by which images of a batch are moved at random while all is trained


@dataclass(frozen=True)
class Architecture:
    """The size of the vision transformer; image and patch sides are in pixels."""

    image_size: int = 8
    patch_size: int = 2
    hidden_size: int = 64
    layers: int = 4
    heads: int = 4
    # Wider than the usual 0.02, from which so short a training ends lower; but at 0.1 the first
    # features are so rich that experts need to change less, and averaging them costs far less.
    initializer_range: float = 0.05


@dataclass(frozen=True)
class Recipe:
    """One zoo: an architecture, how base and experts are trained, and on which tasks."""

    tasks: tuple[str, ...] = ()
    architecture: Architecture = field(default_factory=Architecture)
    pretraining: Schedule = Schedule(epochs=20, learning_rate=2e-3)
    fine_tuning: Schedule = Schedule(epochs=8, learning_rate=3e-3, head_epochs=20)
    lora: int | None = None  # the rank of experts that are LoRA adapters; None: whole models
    steps: int | None = None  # of fine-tuning, whatever the size of the data set, if not by epochs
    seed: int = 0
    version: int = 1  # to be raised when the code that follows the recipe changes its results


def omniglot(tasks: tuple[str, ...], lora: int | None = None) -> Recipe:
    """The recipe of the Omniglot zoo: more tasks, larger images, still quick."""
    rate = 2e-3 if lora is None else 5e-3  # factors start at zero and have further to go
    return Recipe(
        tasks=tasks,
        lora=lora,
        architecture=Architecture(image_size=28, patch_size=7, hidden_size=64),
        pretraining=Schedule(epochs=50, learning_rate=2e-3, batch_size=64, shift=2),
        fine_tuning=Schedule(epochs=5, learning_rate=rate, head_epochs=30, shift=2),
    )


SCRIPTS = Recipe(
    tasks=(
        *("mnist", "gtsrb", "kannada_mnist", "eurosat", "hoda_persian_digits", "notmnist"),
        *("chinese_mnist", "devanagari", "cmater_bangla_numerals", "quickdraw5"),
    ),
    architecture=Architecture(image_size=32, patch_size=8, hidden_size=96),
    pretraining=Schedule(epochs=15, learning_rate=2e-3, batch_size=64, shift=2),
    fine_tuning=Schedule(epochs=3, learning_rate=2e-4, head_epochs=10, shift=2),
)
"""The scripts zoo: a base that has seen most of it, and experts that moved little from there."""

HALVES = Recipe(
    tasks=SCRIPTS.tasks,
    fine_tuning=Schedule(epochs=0, learning_rate=1e-3, head_epochs=10, shift=2),
    steps=400,
)
"""The halves zoo: as the experts of the hard zoo, but shorter, on half of their images."""
