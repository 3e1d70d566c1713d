"""Pools hold what the expert's own processor gives, in a quarter of the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, ViTImageProcessor

from tests.tiny_models import WORDS, tokenizer
from tests.tiny_zoo import TinyZoo
from tintray.checkpoints.model_folder import open_model_folder
from tintray.checkpoints.processors import load_processor
from tintray.data.reading import Examples
from tintray.data.source import DataSource
from tintray.errors import CheckpointError, DataError
from tintray.limits import Limits
from tintray.models.loading import load_expert
from tintray.pools.feeding import batches_on, examples_at_once
from tintray.pools.overlap import shared
from tintray.pools.pool import Pool
from tintray.pools.preparing import build_pool
from tintray.tinting.self_labels import predict, self_labels

SIZE = {"height": 16, "width": 16}
UNUSUAL = [
    {"do_normalize": False},
    {"do_rescale": False},
    {"image_mean": [0.1, 0.5, 0.9], "image_std": [0.2, 0.3, 0.4]},
    {"rescale_factor": 1 / 127.5},
    {"resample": Image.Resampling.NEAREST},
    {"do_resize": False},
]


def raw(images: Any) -> Examples:
    return Examples({"image": images}, np.arange(len(images)))


def images(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def built(zoo: TinyZoo, task: str) -> tuple[Any, Pool]:
    """An expert and its pool."""
    folder = open_model_folder(zoo.folder / task)
    data = raw(zoo.arrays(task)["x_train"])
    return load_expert(folder), build_pool(data, load_processor(folder, task))


@pytest.mark.parametrize("options", [{}, *UNUSUAL])
def test_batches_are_what_the_processor_gives(options: dict[str, Any]) -> None:
    processor = ViTImageProcessor(**({"size": SIZE} | options))
    data = images(11, 16, 16, 3) if "do_resize" in options else images(11, 12, 20, 3)
    pool = build_pool(raw(data), processor)
    expected = processor([Image.fromarray(image) for image in data], return_tensors="pt")
    index = torch.tensor([10, 0, 3])
    batch = pool.batch(index)
    assert batch.keys() == {"pixel_values"}
    assert torch.allclose(batch["pixel_values"], expected["pixel_values"][index].float(), atol=1e-6)
    assert len(pool) == 11
    assert options or pool.inputs["pixel_values"].dtype == torch.uint8  # as ordinary ones are


def test_gray_images_have_three_equal_channels_or_the_one_of_the_model() -> None:
    data = images(4, 16, 16)
    pool = build_pool(raw(data), ViTImageProcessor(size=SIZE))
    red, green, blue = pool.batch(slice(None))["pixel_values"].unbind(1)
    assert torch.equal(red, green) and torch.equal(red, blue)
    pool = build_pool(raw(data), ViTImageProcessor(size=SIZE, image_mean=[0.3], image_std=[0.2]))
    expected = (torch.from_numpy(data).float() / 255 - 0.3) / 0.2
    assert torch.allclose(pool.batch(slice(0, 4))["pixel_values"][:, 0], expected, atol=1e-5)


def test_digest_is_of_pixels_and_preprocessing() -> None:
    data = images(4, 16, 16, 3)
    changed = data.copy()
    changed[2, 3, 4, 1] ^= 1
    processors = [ViTImageProcessor(size=SIZE), ViTImageProcessor(size=SIZE, image_mean=[0.4] * 3)]
    digests = [build_pool(raw(d), p).digest for d in (data, changed) for p in processors]
    assert len(set(digests)) == 4
    assert build_pool(raw(data.copy()), processors[0]).digest == digests[0]


def test_an_expert_without_a_processor_is_refused(tiny: TinyZoo, tmp_path: Path) -> None:
    folder = tiny.copy(tmp_path / "zoo").folder / "five"
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"five has no usable preprocessor_config\.json"):
        load_processor(open_model_folder(folder), "tasks.five.expert")


def test_predictions_are_the_models_own_in_order(tiny: TinyZoo) -> None:
    """Whatever the batches in which a pool passes the model."""
    expert, pool = built(tiny, "three")
    assert len(pool) % 32 != 0
    with torch.inference_mode():
        expected = torch.cat([expert(**pool.batch(torch.tensor([n]))).logits for n in range(40)])
    assert torch.allclose(predict(expert, pool), expected, atol=1e-5)
    few = pool[torch.tensor([7, 3])]
    assert list(few.rows) == [7, 3] and few.digest == pool.digest
    assert torch.equal(few.inputs["pixel_values"][1:], pool[3:4].inputs["pixel_values"])


def test_an_expert_that_answers_nonsense_is_refused(tiny: TinyZoo) -> None:
    expert, pool = built(tiny, "three")
    with torch.no_grad():
        expert.classifier.bias[1] = torch.inf
    with pytest.raises(CheckpointError, match=r"tasks\.x\.expert gives NaN .* on 40 of 40 pool"):
        self_labels(expert, pool, "tasks.x.expert")


# -- budgets, and what a test set shares with a pool -----------------------------------------------

SOURCE = DataSource("d.npz", limits=Limits(max_pool_bytes=100_000, max_image_pixels=50_000))


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def pool_of(values: Any, processor: Any, **options: Any) -> Pool:
    kind = "text" if isinstance(values[0], str) else "image"
    return build_pool(Examples({kind: values}), processor, role="tasks.x.pool", **options)


@pytest.mark.parametrize(
    ("values", "processor", "words"),
    [
        (images(20, 4, 4, 3), ViTImageProcessor(size=square(50)), "20 images takes"),
        (images(1, 4, 4, 3), ViTImageProcessor(size=square(9999)), "size 9999"),
        (images(1, 1, 500, 3), CLIPImageProcessor(size={"shortest_edge": 40}), "500.0 times"),
        (images(1, 4, 4, 3), CLIPImageProcessor(size=square(9), crop_size=square(999)), "crop_"),
        ([images(4, 4, 3), images(1, 900, 3)], CLIPImageProcessor(), "900.0 times"),
    ],
)
def test_images_that_grow_beyond_the_budget_are_refused_before_they_do(
    values: Any, processor: Any, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        pool_of(values, processor, source=SOURCE)


def test_texts_of_which_one_is_long_are_refused_before_they_are_padded() -> None:
    texts = ["w1 w2"] * 200 + ["w1 " * 500]
    with pytest.raises(DataError, match="201 texts of up to 50"):
        pool_of(texts, tokenizer(model_max_length=600), source=SOURCE)
    assert len(pool_of(texts[:200], tokenizer(model_max_length=600), source=SOURCE)) == 200


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


@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_that_are_made_ready_beforehand_are_the_same(ahead: int) -> None:
    """As for a GPU, in this process; whoever stops early is not held up."""
    pool = build_pool(raw(images(11, 12, 20, 3)), ViTImageProcessor(size=SIZE))
    found = list(batches_on(pool, "cpu", 4, ahead=ahead))
    assert [len(batch["pixel_values"]) for batch in found] == [4, 4, 3]
    whole = pool.batch(slice(0, 11))["pixel_values"]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in found]), whole)
    first = next(batches_on(pool, "cpu", 4, ahead=ahead))
    assert torch.equal(first["pixel_values"], whole[:4])


def test_what_goes_wrong_beforehand_is_raised_where_the_batch_is_asked_for() -> None:
    pool = Pool({"x": torch.zeros(5, 2)}, torch.ones(1), torch.ones(1), "pixels are missing")
    with pytest.raises(KeyError, match="pixel_values"):
        list(batches_on(pool, "cpu", 2, ahead=2))


def test_images_cross_to_a_device_as_bytes_and_become_floats_there() -> None:
    pool = build_pool(raw(images(5, 12, 20, 3)), ViTImageProcessor(size=SIZE))
    assert pool.stored(slice(0, 2))["pixel_values"].dtype == torch.uint8
    for batch in batches_on(pool, "meta", 2, ahead=1):
        assert (str(batch["pixel_values"].device), batch["pixel_values"].dtype) == (
            "meta",
            torch.float32,
        )


def test_a_gpu_gets_batches_that_fill_it_and_fit_it() -> None:
    small, large = (
        Pool({"pixel_values": torch.zeros(1, 3, n, n)}, None, None, "") for n in (8, 448)
    )
    texts = Pool({"input_ids": torch.zeros(1, 512, dtype=torch.long)}, None, None, "")
    assert [examples_at_once(pool) for pool in (small, large, texts)] == [32, 32, 32]
    assert [examples_at_once(pool, "cuda") for pool in (small, large, texts)] == [1024, 64, 32]
