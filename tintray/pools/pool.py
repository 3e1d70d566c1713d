"""Pools: examples as a model takes them, in memory, prepared by the expert's own processor.

Images are stored as the processor resizes them (uint8) and turned into floats per batch, which
takes a quarter of the memory. Texts are stored as tokens, padded to the longest of the pool; a
batch is cut to its own longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

BATCH = 32
"""Examples of one forward pass: few enough to stay in a core's cache, as was measured."""


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
        """Model inputs of all examples in source, or of the first, ``BATCH`` at a time."""
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
