"""Pools: examples as a model takes them, in memory, prepared by the expert's own processor.

Images are stored as the processor resizes them (uint8) and turned into floats per batch, which
takes a quarter of the memory. Texts are stored as tokens, padded to the longest of the pool; a
batch is cut to its own longest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BATCH = 32
"""Examples of one forward pass: few enough to stay in a core's cache, as was measured."""


@dataclass(frozen=True)
class Pool:
    """Preprocessed examples of one task, in memory."""

    inputs: dict[str, Tensor]  # model inputs by name, each [N, …]; ``pixel_values`` may be uint8
    # per-channel factors [C, 1, 1] that turn uint8 pixels into the processor's floats; ``None``
    # where inputs are final
    scale: Tensor | None
    shift: Tensor | None
    digest: str  # sha256 of the raw examples and of how they were prepared
    # bool [N, S] where each of an example's S tokens has an answer: which of them count
    mask: Tensor | None = None
    rows: Any = ()  # which rows of the split the examples are
    # the right token of each position, int64 [N, S], where the text itself is the label (the next
    # token); -100 where there is none
    targets: Tensor | None = None
    # tokens that an answer of a sequence-to-sequence model has at most; see ``sequences``
    answer_length: int | None = None

    def __post_init__(self) -> None:
        # As a file has them: in what order a model adds up depends on how its inputs lie in memory.
        inputs = {name: tensor.contiguous() for name, tensor in self.inputs.items()}
        object.__setattr__(self, "inputs", inputs)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, index: Tensor | slice) -> Self:
        """The examples at ``index``, as a pool."""
        rows = self.rows
        if len(rows):
            rows = np.asarray(rows)[index if isinstance(index, slice) else index.numpy()]
        return replace(
            self,
            inputs={name: tensor[index] for name, tensor in self.inputs.items()},
            mask=None if self.mask is None else self.mask[index],
            targets=None if self.targets is None else self.targets[index],
            rows=rows,
        )

    def narrowed(self, rows: Tensor) -> Self:
        """The examples at ``rows`` [n] alone, as another pool than the whole one."""
        digest = hashlib.sha256(self.digest.encode() + rows.numpy().tobytes()).hexdigest()
        return replace(self[rows], digest=digest)

    def batch(self, index: Tensor | slice) -> dict[str, Tensor]:
        """Model inputs of the examples at ``index``; tokens are cut to the longest of them."""
        return self.as_floats(self.stored(index))

    def stored(self, index: Tensor | slice) -> dict[str, Tensor]:
        """The same as it lies in memory: pixels may be bytes, see ``as_floats``."""
        return trimmed({name: tensor[index] for name, tensor in self.inputs.items()})

    def untrimmed(self, index: Tensor | slice) -> dict[str, Tensor]:
        """A batch with as many tokens as the longest example of the pool has."""
        return self.as_floats({name: tensor[index] for name, tensor in self.inputs.items()})

    def as_floats(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stored examples as model inputs, wherever they are by now."""
        if self.scale is None or self.shift is None:
            return batch
        pixels = batch["pixel_values"]
        scale, shift = (of.to(pixels.device) for of in (self.scale, self.shift))
        return {**batch, "pixel_values": pixels.float() * scale + shift}

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
        extra = [tensor for tensor in (self.mask, self.targets) if tensor is not None]
        return sum(tensor.nbytes for tensor in (*self.inputs.values(), *extra))

    def extremes(self) -> Pool:
        """The examples with the most and the fewest tokens, as one batch with padding in it.

        Where all are of one size, the first.
        """
        attention = self.inputs.get("attention_mask")
        if attention is None or attention.ndim != 2:
            return self[:1]
        lengths = attention.sum(1)
        first, last = sorted((int(lengths.argmax()), int(lengths.argmin())))
        return self[first : last + 1 : max(1, last - first)]


def trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch without the columns that are padding in every example."""
    for prefix in ("", "decoder_"):
        attention = batch.get(f"{prefix}attention_mask")
        if attention is None or attention.ndim != 2:
            continue
        total = attention.shape[1]
        length = max(1, int(attention.any(0).nonzero().max()) + 1) if attention.any() else 1
        for name, tensor in batch.items():
            same_side = name.startswith("decoder_") == bool(prefix)
            if same_side and tensor.ndim == 2 and tensor.shape[1] == total:
                batch[name] = tensor[:, :length]
    return batch


def joined(batches: Sequence[dict[str, Tensor]], pad_token: int = 0) -> dict[str, Tensor]:
    """The batches of several tasks as one; shorter texts are padded on the right."""
    return {name: torch.cat(tensors) for name, tensors in alike(batches, pad_token).items()}


def alike(batches: Sequence[dict[str, Tensor]], pad_token: int = 0) -> dict[str, list[Tensor]]:
    """The batches of several tasks by input; shorter texts are padded on the right."""

    def padded(name: str) -> list[Tensor]:
        tensors = [batch[name] for batch in batches]
        if tensors[0].ndim != 2:
            return tensors
        width = max(tensor.shape[1] for tensor in tensors)
        fill = pad_token if name.endswith("input_ids") else 0
        return [functional.pad(t, (0, width - t.shape[1]), value=fill) for t in tensors]

    return {name: padded(name) for name in batches[0]}
