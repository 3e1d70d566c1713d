"""Pools: the unlabelled examples that a fit may see, and the test sets that it may not.

Images are stored as the processor resizes them (uint8) and turned into floats per batch, which
takes a quarter of the memory. That shortcut is used only where it gives, to the last bit that
float32 rounding leaves, what the expert's own processor gives.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from tintray.checkpoints import Checkpoint
from tintray.errors import DataError, nearest

_PROBE = 8  # examples on which the uint8 shortcut is checked against the processor itself


@dataclass(frozen=True)
class Pool:
    """Preprocessed examples of one task, in memory.

    Attributes
    ----------
    inputs
        Model inputs by name, each [N, …]; ``pixel_values`` may be uint8.
    scale, shift
        Per-channel factors [C, 1, 1] that turn uint8 pixels into the processor's floats; ``None``
        where inputs are final.
    digest
        sha256 of the raw examples and of how they were prepared.
    """

    inputs: dict[str, Tensor]
    scale: Tensor | None
    shift: Tensor | None
    digest: str

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batch(self, index: Tensor | slice) -> dict[str, Tensor]:
        """Model inputs of the examples at ``index``, as float32 where they are pixels."""
        chosen = {name: tensor[index] for name, tensor in self.inputs.items()}
        if self.scale is not None and self.shift is not None:
            chosen["pixel_values"] = chosen["pixel_values"].float() * self.scale + self.shift
        return chosen


@dataclass(frozen=True)
class RawImages:
    """Images of one split as the file holds them: uint8 [N, H, W] or [N, H, W, 3]."""

    images: np.ndarray[Any, Any]
    source: str

    def digest(self) -> str:
        """sha256 of the pixels and their shape."""
        total = hashlib.sha256(f"{self.images.shape}{self.images.dtype}".encode())
        total.update(np.ascontiguousarray(self.images).data)
        return total.hexdigest()


def read_images(path: Path, split: str, role: str) -> RawImages:
    """Read ``x_<split>`` of an npz file; labels in it are not touched.

    Raises
    ------
    DataError
        If the file, the split or any example is missing, or the array is not uint8 images.
    """
    array = _read_array(path, f"x_{split}", role)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[3:] not in ((), (3,)):
        raise DataError(
            f"{role}: 'x_{split}' in {path} is {array.dtype} {list(array.shape)}; expected uint8 "
            "images [N, height, width] or [N, height, width, 3]"
        )
    if array.size == 0:
        raise DataError(f"{role}: 'x_{split}' in {path} is empty; expected at least one example")
    return RawImages(array, f"{path}:{split}")


def read_labels(path: Path, split: str, role: str, *, examples: int, classes: int) -> Tensor:
    """Read ``y_<split>`` of an npz file as int64 [N], checked against the head's width.

    Raises
    ------
    DataError
        If labels are missing, of another number than the examples, or outside ``[0, classes)``.
    """
    array = _read_array(path, f"y_{split}", role)
    if array.shape != (examples,) or array.dtype.kind not in "iu":
        raise DataError(
            f"{role}: 'y_{split}' in {path} is {array.dtype} {list(array.shape)}; expected one "
            f"integer label for each of the {examples:,} examples"
        )
    if array.min() < 0 or array.max() >= classes:
        found = int(array.min()) if array.min() < 0 else int(array.max())
        raise DataError(
            f"{role}: 'y_{split}' in {path} holds label {found}; the expert's head has {classes} "
            f"classes, so labels must be 0 to {classes - 1}"
        )
    return torch.from_numpy(array.astype(np.int64))


def check_class_names(path: Path, role: str, classes: int) -> None:
    """Refuse a data file whose ``class_names``, where it has them, are not as many as the head's.

    Raises
    ------
    DataError
        Naming both numbers.
    """
    with np.load(path, allow_pickle=False) as arrays:
        named = len(arrays["class_names"]) if "class_names" in arrays.files else classes
    if named != classes:
        raise DataError(
            f"{role}: {path} names {named} classes, and the expert's head has {classes}; expected "
            "as many, is this the data of another task?"
        )


def _read_array(path: Path, key: str, role: str) -> np.ndarray[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if key not in arrays.files:
                splits = sorted(n.removeprefix("x_") for n in arrays.files if n.startswith("x_"))
                raise DataError(
                    f"{role}: {path} has no array '{key}'; its splits are "
                    f"{', '.join(splits) or 'none'}"
                    f"{nearest(key, arrays.files)}"
                )
            array: np.ndarray[Any, Any] = arrays[key]
    except FileNotFoundError as error:
        raise DataError(f"{role}: the data file {path} does not exist") from error
    except (OSError, ValueError, EOFError, AttributeError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"{role}: {path} cannot be read as an npz file of plain arrays ({error})"
        ) from error
    return array


def load_processor(checkpoint: Checkpoint, role: str) -> Any:
    """The image processor of an expert's folder.

    Raises
    ------
    CheckpointError
        If the folder has none.
    """
    from transformers import AutoImageProcessor

    from tintray.errors import CheckpointError

    try:
        return AutoImageProcessor.from_pretrained(checkpoint.folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{role}: {checkpoint.folder} has no usable preprocessor_config.json; expected the "
            "image processor saved beside the expert"
        ) from error


def build_pool(raw: RawImages, processor: Any) -> Pool:
    """Prepare raw images exactly as the expert's processor does."""
    digest = hashlib.sha256(f"{raw.digest()}{processor.to_json_string()}".encode()).hexdigest()
    images = _as_pil(raw.images, "L" if _channels(processor) == 1 else "RGB")
    resized = processor(images, return_tensors="np", do_rescale=False, do_normalize=False)
    pixels = resized["pixel_values"]
    if set(resized) == {"pixel_values"} and pixels.dtype == np.uint8:
        scale, shift = _affine(processor, channels=pixels.shape[1])
        pool = Pool({"pixel_values": torch.from_numpy(pixels)}, scale, shift, digest)
        probe = processor(images[:_PROBE], return_tensors="pt")["pixel_values"]
        if torch.allclose(pool.batch(slice(0, _PROBE))["pixel_values"], probe, atol=1e-6):
            return pool
    full = processor(images, return_tensors="pt")
    return Pool({name: torch.as_tensor(value) for name, value in full.items()}, None, None, digest)


def _channels(processor: Any) -> int:
    """How many channels the expert's model takes, as its normalisation tells: 1 (gray) or 3."""
    mean = getattr(processor, "image_mean", None)
    gray = isinstance(mean, Sequence) and len(mean) == 1
    return 1 if gray and not getattr(processor, "do_convert_rgb", None) else 3


def _as_pil(images: np.ndarray[Any, Any], mode: str) -> list[Any]:
    from PIL import Image

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
