"""Answers of a model on N examples: one tensor, or a language model's likeliest tokens.

A tensor [N, …] holds a row of logits or values per example, logits per token [N, S, C], or maps
[N, C, H, W]. Where tasks of different size share a batch, answers come padded: ``cut_alike`` cuts
two of them to what both have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_STRETCH = 64  # examples: maps of a whole pool are large


@dataclass(frozen=True)
class TopTokens:
    """Distributions over a vocabulary, each cut to its k likeliest tokens."""

    indices: Tensor  # the tokens, int64 [N, S, k]
    # their log-probabilities, [N, S, k]; what they lack of 1 belongs to all others together
    logs: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Tensor | slice) -> TopTokens:
        return TopTokens(self.indices[index], self.logs[index])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TopTokens:
        """The same on a device, as ``Tensor.to``."""
        moved = (part.to(device, non_blocking=non_blocking) for part in (self.indices, self.logs))
        return TopTokens(*moved)

    @property
    def likeliest(self) -> Tensor:
        """The likeliest token of each position, [N, S]."""
        return self.indices[..., 0]


Outputs = Tensor | TopTokens
"""What a model answered on N examples."""

Mask = Tensor | None
"""Which tokens of N texts count, [N, S]; None where an example has no tokens."""


def top_tokens(logits: Tensor, k: int) -> TopTokens:
    """The k likeliest tokens of a language model's logits [N, S, V]."""
    logs, indices = logits.log_softmax(-1).topk(min(k, logits.shape[-1]), dim=-1)
    return TopTokens(indices, logs)


def as_tensors(outputs: Outputs) -> dict[str, Tensor]:
    """Outputs as named tensors, to be kept as an artifact."""
    if isinstance(outputs, TopTokens):
        return {"indices": outputs.indices.int(), "logs": outputs.logs}
    return {"logits": outputs}


def from_tensors(tensors: Mapping[str, Tensor]) -> Outputs:
    """What ``as_tensors`` took apart."""
    if "logs" in tensors:
        return TopTokens(tensors["indices"].long(), tensors["logs"])
    return tensors["logits"]


def concatenated(parts: Sequence[Outputs]) -> Outputs:
    """The answers of several batches as one; per token, they are padded to the longest.

    They lie in memory as a file has them, whoever computed them: how a loss adds up depends on it.
    """
    tops = [part for part in parts if isinstance(part, TopTokens)]
    if tops:
        indices, logs = ([getattr(top, name) for top in tops] for name in ("indices", "logs"))
        return TopTokens(_joined(indices), _joined(logs))
    return _joined([part for part in parts if isinstance(part, Tensor)])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].ndim == 3:
        length = max(part.shape[1] for part in parts)
        parts = [functional.pad(part, (0, 0, 0, length - part.shape[1])) for part in parts]
    return torch.cat(tuple(parts)).contiguous()


def cut_alike(merged: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
    """Both without what is padding in one of them: more classes, or more tokens."""
    for dim in range(1, merged.ndim):
        size = min(merged.shape[dim], expert.shape[dim])
        merged, expert = merged.narrow(dim, 0, size), expert.narrow(dim, 0, size)
    return merged, expert


def stretches(total: int) -> Iterator[slice]:
    """All of ``total`` examples, a few at a time."""
    for start in range(0, total, _STRETCH):
        yield slice(start, start + _STRETCH)


def share(same: Tensor, mask: Mask = None) -> Tensor:
    """[N] from [N, …]: the share of an example's answers, of those that ``mask`` counts."""
    return mean_of(same.float(), mask)


def mean_of(each: Tensor, mask: Mask = None) -> Tensor:
    """[N] from [N, …]: the mean over an example's answers that count; 0 where none of them does."""
    if each.ndim == 1:
        return each
    if mask is None:
        return each.flatten(1).mean(1)
    weights = mask.to(each).flatten(1)
    return (each.flatten(1) * weights).sum(1) / weights.sum(1).clamp_min(1)
