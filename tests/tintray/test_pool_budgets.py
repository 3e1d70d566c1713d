"""What a pool takes once it is prepared, and what it shares with a test set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPImageProcessor, ViTImageProcessor

from tests.tiny_models import WORDS, tokenizer
from tintray.data.reading import Examples
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.limits import Limits
from tintray.pools.overlap import shared
from tintray.pools.pool import Pool
from tintray.pools.preparing import build_pool

ORDER = DataSource("d.npz", limits=Limits(max_pool_bytes=100_000, max_image_pixels=50_000))


def images(count: int, *shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def pool_of(values: Any, processor: Any, **options: Any) -> Pool:
    kind = "text" if isinstance(values[0], str) else "image"
    return build_pool(Examples({kind: values}, "d"), processor, role="tasks.x.pool", **options)


@pytest.mark.parametrize(
    ("values", "processor", "words"),
    [
        (images(20, 4, 4, 3), ViTImageProcessor(size=square(50)), "20 images takes"),
        (images(1, 4, 4, 3), ViTImageProcessor(size=square(9999)), "size 9999"),
        (images(1, 1, 500, 3), CLIPImageProcessor(size={"shortest_edge": 40}), "500.0 times"),
        (images(1, 4, 4, 3), CLIPImageProcessor(size=square(9), crop_size=square(999)), "crop_"),
        ([images(4, 4, 3), images(1, 900, 3)], CLIPImageProcessor(), "900.0 times"),
    ],
)  # fmt: skip
def test_images_that_grow_beyond_the_budget_are_refused_before_they_do(
    values: Any, processor: Any, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        pool_of(values, processor, source=ORDER)


def test_texts_of_which_one_is_long_are_refused_before_they_are_padded() -> None:
    texts = ["w1 w2"] * 200 + ["w1 " * 500]
    with pytest.raises(DataError, match="201 texts of up to 50"):
        pool_of(texts, tokenizer(model_max_length=600), source=ORDER)
    assert len(pool_of(texts[:200], tokenizer(model_max_length=600), source=ORDER)) == 200


@settings(max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12),
       st.lists(st.integers(0, 6), min_size=1, max_size=12), st.booleans())  # fmt: skip
def test_shared_examples_are_counted_by_content(
    mine: list[int], theirs: list[int], text: bool
) -> None:
    """Whatever their order, their number, and the padding that the longest of a pool asks for."""
    if text:
        known: Any = [" ".join(WORDS[: n + 1]) for n in range(7)]
        made = [pool_of([known[n] for n in rows], TOKENIZER) for rows in (mine, theirs)]
    else:
        known = images(7, 4, 4, 3)
        made = [pool_of(known[rows], PROCESSOR) for rows in (mine, theirs)]
    assert shared(*made) == sum(n in mine for n in theirs)


TOKENIZER, PROCESSOR = tokenizer(), ViTImageProcessor(size={"height": 4, "width": 4})


def test_what_a_decoder_is_to_write_does_not_count() -> None:
    inputs = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1, 1]])}
    pool = Pool(inputs, None, None, "")
    test = Pool({**inputs, "decoder_input_ids": torch.tensor([[7]])}, None, None, "")
    assert shared(pool, test) == 1
