"""Pools: examples as a model takes them, in memory, prepared by the expert's own processor.

Images are stored as the processor resizes them (uint8) and turned into floats per batch, which
takes a quarter of the memory. That shortcut is used only where it gives, to the last bit that
float32 rounding leaves, what the expert's own processor gives. Texts are stored as tokens, padded
to the longest of the pool; a batch is cut to its own longest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tintray.checkpoints.model_folder import ModelFolder
from tintray.checkpoints.processors import load_processor
from tintray.data.labels import Answers
from tintray.data.reading import Examples, encoded_digest, read_examples
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.files import foreign
from tintray.pools.tokens import build_tokens
from tintray.tasks.classes import CLASSIFICATION
from tintray.tasks.kind import Kind

ANSWER_LENGTH = 64
"""Tokens that an answer of a sequence-to-sequence model has at most, if the job does not say."""

BATCH = 32
"""Examples per forward pass over a pool: few enough to stay in a core's cache, measured."""

_FLOAT = 4  # bytes
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
    mask
        bool [N, S] where each of an example's S tokens has an answer: which of them count.
    rows
        Which rows of the split the examples are.
    words
        The target of each position, int64 [N, S], where the text itself is the label (the next
        token); -100 where there is none.
    answer_length
        Tokens that an answer of a sequence-to-sequence model has at most; see ``sequences``.
    """

    inputs: dict[str, Tensor]
    scale: Tensor | None
    shift: Tensor | None
    digest: str
    mask: Tensor | None = None
    rows: Any = ()
    words: Tensor | None = None
    answer_length: int | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batch(self, index: Tensor | slice) -> dict[str, Tensor]:
        """Model inputs of the examples at ``index``; tokens are cut to the longest of them."""
        return trimmed(self.untrimmed(index))

    def untrimmed(self, index: Tensor | slice) -> dict[str, Tensor]:
        """The same with as many tokens as the longest example of the pool has."""
        chosen = {name: tensor[index] for name, tensor in self.inputs.items()}
        if self.scale is not None and self.shift is not None:
            chosen["pixel_values"] = chosen["pixel_values"].float() * self.scale + self.shift
        return chosen

    def batches(self, examples: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Model inputs of all examples in order, or of the first, ``BATCH`` at a time."""
        stop = len(self) if examples is None else min(examples, len(self))
        for start in range(0, stop, BATCH):
            yield self.batch(slice(start, min(start + BATCH, stop)))

    def counts(
        self, index: Tensor | slice, length: int, device: torch.device | str = "cpu"
    ) -> Tensor | None:
        """Which of the first ``length`` tokens of the examples at ``index`` count: bool [b, S]."""
        return None if self.mask is None else self.mask[index][:, :length].to(device)

    @property
    def memory(self) -> int:
        """Bytes that the examples take."""
        extra = [tensor for tensor in (self.mask, self.words) if tensor is not None]
        return sum(tensor.nbytes for tensor in (*self.inputs.values(), *extra))

    def first(self, count: int) -> Pool:
        """The first ``count`` examples."""
        return self.part(slice(0, count))

    def extremes(self) -> Pool:
        """The examples with the most and the fewest tokens, as one batch with padding in it.

        Where all are of one size, the first.
        """
        attention = self.inputs.get("attention_mask")
        if attention is None or attention.ndim != 2:
            return self.first(1)
        lengths = attention.sum(1)
        first, last = sorted((int(lengths.argmax()), int(lengths.argmin())))
        return self.part(slice(first, last + 1, max(1, last - first)))

    def part(self, stretch: slice) -> Pool:
        """The examples of a stretch."""
        return replace(
            self,
            inputs={name: tensor[stretch] for name, tensor in self.inputs.items()},
            mask=None if self.mask is None else self.mask[stretch],
            words=None if self.words is None else self.words[stretch],
            rows=self.rows[stretch],
        )


def trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch without the columns that are padding in every example."""
    for prefix in ("", "decoder_"):
        attention = batch.get(f"{prefix}attention_mask")
        if attention is None or attention.ndim != 2:
            continue
        total = attention.shape[1]
        length = max(1, int(attention.any(0).nonzero().max()) + 1) if attention.any() else 1
        for name in _of_length(batch, prefix, total):
            batch[name] = batch[name][:, :length]
    return batch


def joined(batches: Sequence[dict[str, Tensor]], pad_token: int = 0) -> dict[str, Tensor]:
    """The batches of several tasks as one; shorter texts are padded on the right."""
    names = batches[0].keys()
    widths = {
        name: max(batch[name].shape[1] for batch in batches)
        for name in names
        if batches[0][name].ndim == 2
    }

    def padded(name: str, tensor: Tensor) -> Tensor:
        room = widths.get(name, 0) - tensor.shape[1] if name in widths else 0
        if room <= 0:
            return tensor
        fill = pad_token if name.endswith("input_ids") else 0
        return torch.nn.functional.pad(tensor, (0, room), value=fill)

    return {name: torch.cat([padded(name, batch[name]) for batch in batches]) for name in names}


def _of_length(batch: dict[str, Tensor], prefix: str, length: int) -> list[str]:
    return [
        name
        for name, tensor in batch.items()
        if name.startswith("decoder_") == bool(prefix)
        and tensor.ndim == 2
        and tensor.shape[1] == length
    ]


def open_pool(
    order: DataSource,
    checkpoint: ModelFolder,
    kind: Kind,
    role: str,
    data: str,
    cache: Path | None = None,
) -> Pool:
    """Read examples and prepare them for an expert; ``data`` is how messages call the examples.

    Below ``cache`` prepared images are kept, by content; see ``pool_cache``.

    Raises
    ------
    DataError, CheckpointError
        If they cannot be read, or the expert's folder has no processor for them.
    """
    encoded = encoded_digest(order, data) if cache and checkpoint.preprocessor_files else None
    if cache is not None and encoded is not None:
        return decoded_once(encoded, order, load_processor(checkpoint, role), kind, data, cache)
    examples = read_examples(order, data)
    known = checkpoint.preprocessor_files
    processor = None
    if known or checkpoint.factory is None or examples.is_text:
        processor = load_processor(checkpoint, role, text=examples.is_text)
    return build_pool(examples, processor, kind=kind, order=order, role=data)


def decoded_once(
    encoded: str, order: DataSource, processor: Any, kind: Kind, role: str, cache: Path
) -> Pool:
    """A pool of images, prepared anew or from the cache; ``encoded`` is their ``encoded_digest``.

    Raises
    ------
    DataError
        If more of them than ``max_bad`` cannot be decoded.
    """
    from tintray.pools.cache import cached_pool

    key = f"{encoded} {processor.to_json_string()} {order.max_bad}"
    return cached_pool(
        *(cache, key),
        lambda: build_pool(
            read_examples(order, role), processor, kind=kind, order=order, role=role
        ),
    )


def labels_of(order: DataSource, kind: Kind, pool: Pool, answers: Answers, role: str) -> Any:
    """The labels of a pool's examples; those of a model that writes are the tokens themselves.

    Raises
    ------
    DataError
        If they are missing or do not fit what the expert answers.
    """
    if pool.words is not None:
        return pool.words
    return kind.read_labels(order, pool.rows, answers, role)


def build_pool(
    examples: Examples,
    processor: Any,
    *,
    kind: Kind = CLASSIFICATION,
    order: DataSource | None = None,
    role: str = "data",
) -> Pool:
    """Prepare examples exactly as the expert's processor does.

    Without one, as a module from a factory may be, images are scaled to [0, 1], nothing more.

    Raises
    ------
    DataError
        If texts cannot be turned into tokens as the kind of task asks, images cannot be prepared,
        or what comes of them takes more memory than the order's limits allow.
    """
    order = DataSource(examples.source) if order is None else order
    if examples.is_text:
        tokens = build_tokens(examples, processor, kind, order, role)
        pool = Pool(
            tokens.inputs, None, None, tokens.digest, tokens.mask, examples.rows, tokens.words
        )
        if not kind.writes:
            return pool
        length = order.max_target_length or ANSWER_LENGTH
        digest = hashlib.sha256(f"{pool.digest} {length}".encode()).hexdigest()
        return replace(pool, digest=digest, answer_length=length)
    if processor is None:
        return replace(_plain(examples, role), rows=examples.rows)
    _check_resized(examples, processor, order, role)
    with foreign(f"{role}: the expert's image processor cannot prepare the images", DataError):
        return replace(_images(examples, processor, order, role), rows=examples.rows)


def _plain(examples: Examples, role: str) -> Pool:
    images = examples.columns["image"]
    if not isinstance(images, np.ndarray):
        raise DataError(
            f"{role}: the images are of different sizes and the expert has no image processor; "
            "expected images of one size, or a preprocessor_config.json beside the expert"
        )
    pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    scale = torch.full((pixels.shape[1], 1, 1), 1 / 255)
    digest = hashlib.sha256(f"{examples.digest()} plain".encode()).hexdigest()
    return Pool({"pixel_values": pixels}, scale, torch.zeros_like(scale), digest)


def _check_resized(examples: Examples, processor: Any, order: DataSource, role: str) -> None:
    """Refuse to resize an image to more pixels than one may have.

    Where the shorter edge is given, the longer one follows from the image: a line of pixels may
    become one of millions.
    """
    found = examples.columns["image"]
    shapes = {found.shape[1:3]} if isinstance(found, np.ndarray) else {i.shape[:2] for i in found}
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
        if pixels > order.limits.max_image_pixels:
            raise DataError(
                f"{role}: the expert's image processor makes images of {pixels:,.0f} pixels "
                f"({name} {max(sides)}, images up to {longest:,.1f} times as long as wide), and "
                f"max_image_pixels allows {order.limits.max_image_pixels:,}"
            )


def _images(examples: Examples, processor: Any, order: DataSource, role: str) -> Pool:
    digest = hashlib.sha256(f"{examples.digest()}{processor.to_json_string()}".encode()).hexdigest()
    images = _as_pil(examples.columns["image"], "L" if _channels(processor) == 1 else "RGB")
    what = f"{role}: what the image processor makes of {len(images):,} images"
    resized = processor(images[:1], return_tensors="np", do_rescale=False, do_normalize=False)
    each = sum(np.asarray(value).nbytes for value in resized.values())
    order.check_bytes(each * len(images), what)
    resized = processor(images, return_tensors="np", do_rescale=False, do_normalize=False)
    pixels = resized["pixel_values"]
    if set(resized) == {"pixel_values"} and pixels.dtype == "uint8":
        scale, shift = _affine(processor, channels=pixels.shape[1])
        pool = Pool({"pixel_values": torch.from_numpy(pixels)}, scale, shift, digest)
        probe = processor(images[:_PROBE], return_tensors="pt")["pixel_values"]
        if torch.allclose(pool.batch(slice(0, _PROBE))["pixel_values"], probe, atol=1e-6):
            return pool
    order.check_bytes(each // pixels.itemsize * _FLOAT * len(images), what)
    full = processor(images, return_tensors="pt")
    return Pool({name: torch.as_tensor(value) for name, value in full.items()}, None, None, digest)


def _channels(processor: Any) -> int:
    """How many channels the expert's model takes, as its normalisation tells: 1 (gray) or 3."""
    mean = getattr(processor, "image_mean", None)
    gray = isinstance(mean, Sequence) and len(mean) == 1
    return 1 if gray and not getattr(processor, "do_convert_rgb", None) else 3


def _as_pil(images: Any, mode: str) -> list[Any]:
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
