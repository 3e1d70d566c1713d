"""Images: files, their bytes, or arrays of any common layout, as uint8 [H, W] or [H, W, 3]."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintray.data.source import DataSource
from tintray.data.table import Table
from tintray.errors import DataError, nearest
from tintray.files import open_regular
from tintray.limits import size_text

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
# Other readers of Pillow start programs, or read what nobody trains on.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000")
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
_LAYOUTS = "[N, height, width] or [N, height, width, 3] (channels may come first)"


class ImageFolder(Table):
    """``folder/<split>/<class>/…``, or ``folder/<class>/…`` where there is one split only."""

    def __init__(self, source: DataSource, role: str) -> None:
        super().__init__(source, role)
        folder, split = self.path, source.split_name
        splits = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if split in splits:
            folder = folder / split
        elif split != "train":
            raise DataError(
                f"{role}: the folder {folder} has no split '{split}'; it has "
                f"{', '.join(splits) or 'no folders'}{nearest(split, splits)}"
            )
        named = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        self._files = sorted(path for path in named if not path.is_dir())
        if not self._files:
            raise DataError(
                f"{role}: the folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        parents = [file.relative_to(folder).parts[:-1] for file in self._files]
        self._classes = [parts[0] if parts else "" for parts in parents]
        self.columns = ["image", "label"] if all(parents) else ["image"]
        self.rows = len(self._files)
        self.class_names = sorted(set(self._classes) - {""}) or None

    def take(self, column: str, rows: Sequence[int] | NDArray[Any]) -> list[Any]:
        """Where images are, or the names of their folders."""
        values: list[Any] = self._files if column == "image" else self._classes
        return [values[row] for row in rows]

    def file_bytes(self) -> int:
        """Of all images of the split, on disk."""
        return sum(file.lstat().st_size for file in self._files)


def encoded(value: Any, source: DataSource) -> bytes:
    """The bytes of an image file: as a table holds them, or those of the file that it names.

    Raises OSError, ValueError or TypeError: none, too many, or a name out of the data's folders.
    """
    if isinstance(value, Mapping):  # as ``datasets`` keeps images
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    most = source.limits.max_image_bytes
    if isinstance(value, str | Path):
        with open_regular(_inside(value, source)) as file:
            value = file.read(most + 1)
    if not isinstance(value, bytes):
        raise TypeError(f"it holds {value!r:.40}, neither an image nor the name of a file")
    if len(value) > most:
        raise ValueError(f"it has more bytes than max_image_bytes, {size_text(most)}")
    return value


def _inside(name: str | Path, source: DataSource) -> Path:
    """A file that the data name; relative names start from the data's own folder."""
    roots = source.roots
    target = (roots[0] / name).resolve()
    if not any(target.is_relative_to(root) for root in roots):
        raise ValueError(
            f"{name} leads to {target}, out of {roots[0]}; expected a file below it, or its folder "
            "in the setting data_roots"
        )
    return target


def decode(value: Any, source: DataSource) -> NDArray[Any]:
    """An image as uint8 [H, W] (gray) or [H, W, 3]: a file, its bytes, or an array already.

    An animation is its first frame. An orientation in the file's EXIF data is not applied.

    Raises whatever Pillow does over a damaged file, and ValueError if the image has more pixels
    than the budget or a mode without an obvious meaning.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, np.ndarray):
        return value
    Image.init()  # it knows no format by name before
    try:
        opened = Image.open(io.BytesIO(encoded(value, source)), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is no whole image of a known form ({', '.join(_FORMATS)})") from error
    with opened as image:
        pixels, most = image.width * image.height, source.limits.max_image_pixels
        if pixels > most:
            raise ValueError(f"it has {pixels:,} pixels, and max_image_pixels allows {most:,}")
        if image.mode not in _MODES:
            deep = " (more than 8 bits per pixel)" if image.mode.startswith(("I", "F")) else ""
            raise ValueError(f"mode {image.mode}{deep}; convert it to RGB")
        image.load()  # all of it: a truncated file shows here
        return np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB"))


def as_images(array: NDArray[Any], where: str) -> NDArray[Any]:
    """An array of images of any common layout as uint8 [N, H, W] or [N, H, W, 3].

    Numbers have to be those of 8 bits: 0 to 255, or 0 to 1 in steps of 1/255.

    Raises DataError if the layout or the range of the numbers is not certain.
    """
    said = f"{where} is {array.dtype} {list(array.shape)}"
    array = _channels_last(array, said)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise DataError(f"{said}; expected uint8 images {_LAYOUTS}")
    bytes_ = np.empty(array.shape, np.uint8)
    largest = float(array.max())
    scale = 255 if array.dtype.kind == "f" and largest <= 1 else 1
    close = 1e-3 + (64 * float(np.finfo(array.dtype).eps) if array.dtype.kind == "f" else 0)
    for first in range(0, len(array), 256):
        part = array[first : first + 256].astype(np.float64) * scale
        whole = np.rint(part)
        # NaN compares as false
        if not (np.abs(part - whole) <= close).all() or whole.min() < 0 or whole.max() > 255:
            break
        bytes_[first : first + 256] = whole
    else:
        if largest > 1 or (scale == 255 and ((bytes_ > 0) & (bytes_ < 255)).any()):
            return bytes_
    raise DataError(
        f"{said}; expected uint8 images, or numbers that are the same (0 to 255, or 0 to 1 in "
        "steps of 1/255): convert them to uint8"
    )


def _channels_last(array: NDArray[Any], said: str) -> NDArray[Any]:
    """[N, H, W] or [N, H, W, 3], from whatever layout only one reading fits."""
    if array.ndim == 3:
        return array
    first, last = (array.shape[1], array.shape[3]) if array.ndim == 4 else (0, 0)
    if first in (1, 3) and last in (1, 3):
        raise DataError(
            f"{said}, of which either the second or the last number may be the channels; "
            "expected images of more than 3 pixels in height and width"
        )
    if last in (1, 3):
        return array if last == 3 else array[..., 0]
    if first in (1, 3):
        return np.ascontiguousarray(np.moveaxis(array, 1, 3)) if first == 3 else array[:, 0]
    raise DataError(f"{said}; expected uint8 images {_LAYOUTS}")
