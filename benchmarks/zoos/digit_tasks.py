"""The tasks of the digits zoo: eight ways to show and to ask for scikit-learn's written digits.

The digits ship inside scikit-learn: 1,797 gray images of 8x8 pixels. They are parted once into
three: what the base is pretrained on, what the experts learn from, and what tests them. Every task
uses the same parts, so no test image of one task was seen in training by another, or by the base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tintray.errors import InputError, SpecError, nearest

Images = NDArray[np.uint8]  # [N, 8, 8], 0 is the paper and 255 the ink
Labels = NDArray[np.int64]  # [N]

PRETRAINING_SHARE = 0.28  # of each digit's images; the least that makes features worth sharing
POOL_SHARE = 0.50  # for the experts; what remains is the test set
SPLIT_SEED = 0

DIGIT_NAMES = tuple("0123456789")


@dataclass(frozen=True)
class DigitTask:
    """How a task shows a digit, what it asks about it, and the names of the answers."""

    show: Callable[[Images], Images]
    ask: Callable[[Labels], Labels]
    class_names: tuple[str, ...]


def _as_it_is(images: Images) -> Images:
    return images


def _the_digit(digits: Labels) -> Labels:
    return digits


def _scrambled(images: Images) -> Images:
    """Each quarter of the image trades places with the one across from it."""
    return np.roll(images, (4, 4), axis=(1, 2))


def _occluded(images: Images) -> Images:
    """The three right-hand columns are hidden."""
    hidden = images.copy()
    hidden[:, :, 5:] = 0
    return hidden


TASKS: Mapping[str, DigitTask] = {
    "digits": DigitTask(_as_it_is, _the_digit, DIGIT_NAMES),
    "parity": DigitTask(_as_it_is, lambda digits: digits % 2, ("even", "odd")),
    "turned": DigitTask(lambda images: np.rot90(images, 1, (1, 2)), _the_digit, DIGIT_NAMES),
    "upside_down": DigitTask(lambda images: np.rot90(images, 2, (1, 2)), _the_digit, DIGIT_NAMES),
    "mirrored": DigitTask(lambda images: images[:, :, ::-1], _the_digit, DIGIT_NAMES),
    "inverted": DigitTask(lambda images: 255 - images, _the_digit, DIGIT_NAMES),
    "scrambled": DigitTask(_scrambled, _the_digit, DIGIT_NAMES),
    "occluded": DigitTask(_occluded, _the_digit, DIGIT_NAMES),
}


@dataclass(frozen=True)
class Split:
    """Indices into the digits of the three parts; together every image once."""

    pretraining: Labels
    pool: Labels
    test: Labels


def pretraining_digits() -> tuple[Images, Labels]:
    """The upright digits that the base is pretrained on, and no expert ever sees."""
    images, digits = load()
    part = split().pretraining
    return images[part], digits[part]


def base_arrays() -> dict[str, NDArray[np.generic]]:
    """The arrays of the base's data file: ``x_train, y_train, class_names``."""
    images, digits = pretraining_digits()
    return {"x_train": images, "y_train": digits, "class_names": np.array(DIGIT_NAMES)}


def task_arrays(name: str) -> dict[str, NDArray[np.generic]]:
    """The arrays of one task's data file: ``x_train, y_train, x_test, y_test, class_names``.

    Raises
    ------
    SpecError
        There is no task of that name.
    """
    if name not in TASKS:
        raise SpecError(
            f"the digits zoo has no task '{name}'{nearest(name, TASKS)}; it has {', '.join(TASKS)}"
        )
    task, parts = TASKS[name], split()
    images, digits = load()
    shown, asked = np.ascontiguousarray(task.show(images)), task.ask(digits)
    return {
        "x_train": shown[parts.pool],
        "y_train": asked[parts.pool],
        "x_test": shown[parts.test],
        "y_test": asked[parts.test],
        "class_names": np.array(task.class_names),
    }


@cache
def load() -> tuple[Images, Labels]:
    """All 1,797 digits: images uint8 ``[N, 8, 8]`` and which digit each one shows, ``[N]``.

    Raises
    ------
    InputError
        scikit-learn, which is an optional dependency, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the digits zoo is made from images inside scikit-learn, which is not installed; "
            "install it with: pip install 'tintray[zoo]'"
        ) from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # its grays go from 0 to 16
    return images, digits.target.astype(np.int64)


@cache
def split() -> Split:
    """Part the digits in three, with the same share of every digit in each part."""
    _, digits = load()
    random = np.random.default_rng(SPLIT_SEED)
    parts: tuple[list[Labels], ...] = ([], [], [])
    for digit in range(10):
        members = random.permutation(np.flatnonzero(digits == digit))
        cuts = np.cumsum(
            [round(PRETRAINING_SHARE * len(members)), round(POOL_SHARE * len(members))]
        )
        for part, chosen in zip(parts, np.split(members, cuts), strict=True):
            part.append(chosen)
    return Split(*(random.permutation(np.concatenate(part)) for part in parts))
