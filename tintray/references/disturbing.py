"""Examples of a pool that are disturbed on purpose, to learn what a fall of sureness means.

None of these is one of ``data.corruptions``' noises, blurs, lights or contrasts by which a merge is
measured: what is learned here has to hold for what nobody thought of. They work on pixels as they
lie in memory, scaled to [0, 1]; of other inputs there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import torch
from torch import Generator, Tensor
from torch.nn import functional

from tintray.numerics.randomness import stream
from tintray.pools.pool import Pool

Disturbance = Callable[[Tensor, Generator], Tensor]
"""Turns images [N, C, H, W] in [0, 1] into others."""


def _speckle(images: Tensor, random: Generator) -> Tensor:
    return images * (1 + 0.4 * torch.randn(images.shape, generator=random))


def _grain(images: Tensor, random: Generator) -> Tensor:
    return images + 0.4 * (torch.rand(images.shape, generator=random) - 0.5)


def _double_exposure(images: Tensor, random: Generator) -> Tensor:
    return 0.7 * images + 0.3 * images[torch.randperm(len(images), generator=random)]


def _coarse(images: Tensor, _: Generator) -> Tensor:
    height, width = images.shape[-2:]
    size = (max(1, int(0.6 * height)), max(1, int(0.6 * width)))
    fewer = functional.interpolate(images, size=size, mode="area")
    return functional.interpolate(fewer, size=(height, width), mode="nearest")


def _gamma(images: Tensor, _: Generator) -> Tensor:
    return images.square()


def _dark(images: Tensor, _: Generator) -> Tensor:
    return 0.5 * images


def _fog(images: Tensor, random: Generator) -> Tensor:
    clouds = torch.rand(len(images), 1, 4, 4, generator=random)
    clouds = functional.interpolate(clouds, size=images.shape[-2:], mode="bilinear")
    return 0.6 * images + 0.4 * clouds


def _moved(images: Tensor, random: Generator) -> Tensor:
    """By a sixteenth of the width, in one of four directions."""
    by = max(1, round(images.shape[-1] / 16))
    ways = [images.roll(way, axis) for axis in (-1, -2) for way in (by, -by)]
    which = torch.randint(len(ways), (len(images),), generator=random)
    return torch.stack(ways)[which, torch.arange(len(images))]


def _covered(images: Tensor, random: Generator) -> Tensor:
    """A gray square over a part."""
    height, width = images.shape[-2:]
    side = max(1, int(0.4 * min(height, width)))
    rows, columns = (
        (torch.arange(size) - torch.randint(size - side + 1, (len(images), 1), generator=random))
        for size in (height, width)
    )
    inside = [(of >= 0) & (of < side) for of in (rows, columns)]
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None])[:, None], 0.5)


DISTURBANCES: Final[tuple[Disturbance, ...]] = (
    *(_speckle, _grain, _double_exposure, _coarse, _gamma, _dark, _fog, _moved, _covered),
)


def are_images(pool: Pool) -> bool:
    """Whether examples can be disturbed."""
    pixels = pool.inputs.get("pixel_values")
    return pixels is not None and pixels.ndim == 4 and len(pixels) > 0


def disturbed(pool: Pool) -> Iterator[Pool]:
    """A pool of images under each disturbance, always alike; nothing of other pools."""
    if not are_images(pool):
        return
    pixels = pool.inputs["pixel_values"]
    as_bytes = pixels.dtype == torch.uint8
    low, high = (0.0, 255.0) if as_bytes else (float(pixels.min()), float(pixels.max()))
    images = (pixels.float() - low) / max(high - low, 1e-6)
    for disturbance in DISTURBANCES:
        made = disturbance(images, stream(0, "drift", disturbance.__name__)).clamp(0, 1)
        stored = low + made * (high - low)
        stored = (stored.round() if as_bytes else stored).to(pixels.dtype)
        yield replace(pool, inputs={**pool.inputs, "pixel_values": stored})
