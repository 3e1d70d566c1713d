"""Examples as a camera or a hurried writer may give them: common corruptions of five severities.

Those of images are of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261), with the numbers of
its authors' code (github.com/hendrycks/robustness): those for ImageNet, or for images of fewer than
64 pixels those for CIFAR-10.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tintray.data.reading import Examples
from tintray.errors import DataError, InputError, nearest

SEVERITIES = range(1, 6)

_SMALL = 64
"""Pixels of the shorter side, from which on an image is corrupted as ImageNet's are."""

Image = NDArray[Any]  # float32 [H, W] or [H, W, 3], from 0 to 1
Random = np.random.Generator


@dataclass(frozen=True)
class Corruption:
    """What is done to examples, and how much: from 1, hardly seen, to 5."""

    name: str
    severity: int

    @classmethod
    def parse(cls, text: str) -> list[Self]:
        """What ``gaussian_noise:3,blur`` asks for, in order; without a severity, all five of it.

        Raises InputError for an unknown name or severity.
        """
        found = []
        for part in text.split(","):
            name, _, severity = part.strip().partition(":")
            if name not in CORRUPTIONS:
                raise InputError(
                    f"--corrupt: expected {', '.join(CORRUPTIONS)}, found {name!r}"
                    f"{nearest(name, list(CORRUPTIONS))}"
                )
            if severity and severity not in map(str, SEVERITIES):
                raise InputError(
                    f"--corrupt: expected a severity from 1 to 5 as in {name}:3, found {severity!r}"
                )
            found += [cls(name, n) for n in ([int(severity)] if severity else SEVERITIES)]
        return found

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"

    def __call__(self, examples: Examples, role: str) -> Examples:
        """The same examples, corrupted: always in the same way, each by a stream of its own.

        Raises DataError if they are not what this corrupts, images or texts.
        """
        if (self.name == TYPOS) != examples.is_text:
            fits = [name for name in CORRUPTIONS if (name == TYPOS) == examples.is_text]
            what = "texts" if examples.is_text else "images"
            raise DataError(f"{role}: {self.name} corrupts no {what}; expected {', '.join(fits)}")
        if examples.is_text:
            return _misspelt(examples, self.severity)
        images = examples.columns["image"]
        made = [self._image(im, np.random.default_rng([0, n])) for n, im in enumerate(images)]
        whole = np.stack(made) if isinstance(images, np.ndarray) else made
        return replace(examples, columns={**examples.columns, "image": whole})

    def _image(self, image: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
        small, large, change = _IMAGES[self.name]
        amount = (small if min(image.shape[:2]) < _SMALL else large)[self.severity - 1]
        changed = change(np.asarray(image, np.float32) / 255, amount, random)
        found: NDArray[np.uint8] = np.rint(changed.clip(0, 1) * 255).astype(np.uint8)
        return found


# Images


def _noise(image: Image, deviation: float, random: Random) -> Image:
    return image + random.normal(0, deviation, image.shape).astype(np.float32)


def _shot(image: Image, photons: float, random: Random) -> Image:
    return np.asarray(random.poisson(image * photons) / photons, np.float32)


def _impulse(image: Image, share: float, random: Random) -> Image:
    """Salt and pepper."""
    salt = np.where(random.random(image.shape) < 0.5, 0, 1)
    return np.where(random.random(image.shape) < share, np.asarray(salt, np.float32), image)


def _blur(image: Image, deviation: float, _: Random) -> Image:
    """By a Gaussian of four deviations, with edges repeated."""
    reach = max(1, int(4 * deviation + 0.5))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        padding = [(reach, reach) if n == axis else (0, 0) for n in range(image.ndim)]
        padded, size = np.pad(image, padding, mode="edge"), image.shape[axis]
        parts = (padded.take(range(n, n + size), axis) * weight for n, weight in enumerate(kernel))
        image = sum(parts, np.zeros_like(image))
    return image


def _contrast(image: Image, factor: float, _: Random) -> Image:
    mean = image.mean((0, 1), keepdims=True)
    found: Image = (image - mean) * factor + mean
    return found


def _brightness(image: Image, more: float, _: Random) -> Image:
    """The value of hue, saturation and value is raised; colours keep the other two."""
    value = image if image.ndim == 2 else image.max(2, keepdims=True)
    raised = (value + more).clip(0, 1)
    return np.where(value > 0, image * (raised / np.maximum(value, 1e-6)), raised)


def _jpeg(image: Image, quality: float, _: Random) -> Image:
    from PIL import Image as Pillow

    written = io.BytesIO()
    whole = Pillow.fromarray(np.rint(image * 255).astype(np.uint8))
    whole.save(written, "JPEG", quality=int(quality))
    return np.asarray(Pillow.open(written), np.float32) / 255


def _pixelate(image: Image, share: float, _: Random) -> Image:
    from PIL import Image as Pillow

    whole = Pillow.fromarray(np.rint(image * 255).astype(np.uint8))
    few = whole.resize([max(1, int(side * share)) for side in whole.size], Pillow.Resampling.BOX)
    return np.asarray(few.resize(whole.size, Pillow.Resampling.BOX), np.float32) / 255


_Change = Callable[[Image, float, Random], Image]

_IMAGES: Mapping[str, tuple[Sequence[float], Sequence[float], _Change]] = {
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38), _noise),
    "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3), _shot),
    "impulse_noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27), _impulse),
    "blur": ((0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6), _blur),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7), _jpeg),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25), _pixelate),
}
"""Each with what its five severities are: of small images, of others."""

# Texts

TYPOS = "typos"
CORRUPTIONS = (*_IMAGES, TYPOS)

_TYPED_WRONG = (0.05, 0.1, 0.2, 0.3, 0.5)
"""The share of words of three letters and more that get a slip."""

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_BESIDE = {
    key: row[max(0, n - 1) : n] + row[n + 1 : n + 2] for row in _ROWS for n, key in enumerate(row)
}
_WORD = re.compile(r"\w{3,}")


def _misspelt(examples: Examples, severity: int) -> Examples:
    share = _TYPED_WRONG[severity - 1]

    def changed(value: Any, random: Random) -> Any:
        if isinstance(value, str):
            return _WORD.sub(
                lambda word: _slip(word[0], random) if random.random() < share else word[0], value
            )
        if isinstance(value, list):
            return [changed(part, random) for part in value]
        if isinstance(value, Mapping):  # a message of a conversation
            return {**value, "content": changed(value["content"], random)}
        return value

    columns = {
        name: [changed(value, np.random.default_rng([0, n])) for n, value in enumerate(values)]
        for name, values in examples.columns.items()
    }
    return replace(examples, columns=columns)


def _slip(word: str, random: Random) -> str:
    """A letter left out, doubled, swapped with the next, or its neighbour on the keyboard."""
    at = int(random.integers(len(word) - 1))
    letter, rest = word[at], word[at + 1 :]
    beside = _BESIDE.get(letter.lower(), letter)
    other = beside[int(random.integers(len(beside)))]
    made = (
        rest,
        letter * 2 + rest,
        rest[0] + letter + rest[1:],
        (other.upper() if letter.isupper() else other) + rest,
    )
    return word[:at] + made[int(random.integers(len(made)))]
