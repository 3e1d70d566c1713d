"""Images as an expert's processor prepares them, in bytes where that loses nothing.

Pools hold uint8 only where turning them into floats gives, to the last bit that float32 rounding
leaves, what the expert's own processor gives.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tintray.data.reading import Examples
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.files import foreign
from tintray.pools.pool import Pool

_FLOAT = 4  # bytes
_PROBE = 8  # examples on which the uint8 shortcut is checked against the processor itself


def image_pool(examples: Examples, processor: Any, source: DataSource, role: str) -> Pool:
    """A pool of images as ``processor`` prepares them; without one they are scaled to [0, 1]."""
    if processor is None:
        return _plain(examples, role)
    check_resized(examples.columns["image"], processor, source, role)
    with foreign(f"{role}: the expert's image processor cannot prepare the images", DataError):
        return _prepared(examples, processor, source, role)


def _plain(examples: Examples, role: str) -> Pool:
    images = examples.columns["image"]
    if not isinstance(images, np.ndarray):
        raise DataError(
            f"{role}: the images are of different sizes and the expert has no image processor; "
            "expected images of one size, or a preprocessor_config.json beside the expert"
        )
    pixels = _channels_first(images)
    scale = torch.full((pixels.shape[1], 1, 1), 1 / 255)
    digest = hashlib.sha256(f"{examples.digest()} plain".encode()).hexdigest()
    inputs = {"pixel_values": pixels}
    return Pool(inputs, scale, torch.zeros_like(scale), digest, rows=examples.rows)


def _channels_first(images: NDArray[Any]) -> Tensor:
    pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    return pixels.permute(0, 3, 1, 2).contiguous()


def processed(images: Sequence[NDArray[Any]], processor: Any) -> dict[str, Tensor]:
    """Model inputs of a few images, uint8 [H, W] or [H, W, 3], as floats: what a pool's batch has.

    Raises whatever the processor does over images that it cannot bring to one size.
    """
    if processor is None:
        return {"pixel_values": _channels_first(np.stack(images)).float() * (1 / 255)}
    made = processor(_as_pil(images, processor), return_tensors="pt")
    return {name: torch.as_tensor(value) for name, value in made.items()}


def check_resized(images: Any, processor: Any, source: DataSource, role: str) -> None:
    """Refuse to resize an image, of an array [N, H, W, …] or a list, to too many pixels.

    Where the shorter edge is given, the longer one follows from the image: a line of pixels may
    become one of millions.

    Raises DataError.
    """
    of_one_size = isinstance(images, np.ndarray)
    shapes = {images.shape[1:3]} if of_one_size else {image.shape[:2] for image in images}
    longest = max(max(shape) / max(min(shape), 1) for shape in shapes)
    for name in ("size", "crop_size", "pad_size"):
        size: Any = getattr(processor, name, None)
        if not hasattr(size, "get"):
            continue
        edges = {edge: size.get(edge) for edge in ("height", "width", "shortest_edge")}
        sides = [side for side in edges.values() if isinstance(side, int)]
        whole = len(sides) == 2 and not edges["shortest_edge"]
        factor = longest if edges["shortest_edge"] else 1
        pixels = math.prod(sides) if whole else max(sides, default=0) ** 2 * factor
        if pixels > source.limits.max_image_pixels:
            raise DataError(
                f"{role}: the expert's image processor makes images of {pixels:,.0f} pixels "
                f"({name} {max(sides)}, images up to {longest:,.1f} times as long as wide), and "
                f"max_image_pixels allows {source.limits.max_image_pixels:,}"
            )


def _prepared(examples: Examples, processor: Any, source: DataSource, role: str) -> Pool:
    digest = hashlib.sha256(f"{examples.digest()}{processor.to_json_string()}".encode()).hexdigest()
    images = _as_pil(examples.columns["image"], processor)
    what = f"{role}: what the image processor makes of {len(images):,} images"
    resized = processor(images[:1], return_tensors="np", do_rescale=False, do_normalize=False)
    each = sum(np.asarray(value).nbytes for value in resized.values())
    source.check_bytes(each * len(images), what)
    resized = processor(images, return_tensors="np", do_rescale=False, do_normalize=False)
    pixels = resized["pixel_values"]
    if set(resized) == {"pixel_values"} and pixels.dtype == "uint8":
        scale, shift = _affine(processor, channels=pixels.shape[1])
        inputs = {"pixel_values": torch.from_numpy(pixels)}
        pool = Pool(inputs, scale, shift, digest, rows=examples.rows)
        probe = processor(images[:_PROBE], return_tensors="pt")["pixel_values"]
        if torch.allclose(pool.batch(slice(0, _PROBE))["pixel_values"], probe, atol=1e-6):
            return pool
    source.check_bytes(each // pixels.itemsize * _FLOAT * len(images), what)
    full = processor(images, return_tensors="pt")
    inputs = {name: torch.as_tensor(value) for name, value in full.items()}
    return Pool(inputs, None, None, digest, rows=examples.rows)


def _as_pil(images: Any, processor: Any) -> list[Any]:
    """Gray where the expert's model takes one channel, as its normalisation tells; else RGB."""
    from PIL import Image

    mean = getattr(processor, "image_mean", None)
    gray = isinstance(mean, Sequence) and len(mean) == 1
    mode = "L" if gray and not getattr(processor, "do_convert_rgb", None) else "RGB"
    return [Image.fromarray(image).convert(mode) for image in images]


def _affine(processor: Any, channels: int) -> tuple[Tensor, Tensor]:
    """``pixels * scale + shift`` = what rescaling and normalising do, as far as they are on."""
    rescale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    mean = _per_channel(processor.image_mean if processor.do_normalize else 0.0, channels)
    std = _per_channel(processor.image_std if processor.do_normalize else 1.0, channels)
    scale = rescale / std
    return scale.float().view(-1, 1, 1), (-mean / std).float().view(-1, 1, 1)


def _per_channel(value: float | Sequence[float], channels: int) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).expand(channels)
