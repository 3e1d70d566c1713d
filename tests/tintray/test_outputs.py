"""Answers and examples lie in memory as a file has them, however they were computed."""

from __future__ import annotations

import torch

from tintray.pools.pool import Pool
from tintray.tasks.outputs import TopTokens, concatenated


def test_answers_are_contiguous_whatever_a_model_gives() -> None:
    """A decoder of maps may give channels last; a loss over them adds up in another order."""
    maps = torch.randn(2, 5, 4, 4).to(memory_format=torch.channels_last)
    found = concatenated([maps, maps])
    assert isinstance(found, torch.Tensor) and found.is_contiguous()
    assert torch.equal(found, torch.cat([maps, maps]))
    words = torch.randn(3, 7, 2).transpose(1, 2)
    for part in ([words], [words, words[:, :1]]):
        joined = concatenated(part)
        assert isinstance(joined, torch.Tensor) and joined.is_contiguous()
    top = concatenated([TopTokens(words.long(), words)])
    assert isinstance(top, TopTokens) and top.logs.is_contiguous() and top.indices.is_contiguous()


def test_examples_are_contiguous_whatever_a_processor_gives() -> None:
    images = torch.randn(2, 4, 4, 3).permute(0, 3, 1, 2)
    pool = Pool({"pixel_values": images}, None, None, "")
    assert pool.inputs["pixel_values"].is_contiguous()
    assert torch.equal(pool.inputs["pixel_values"], images)
