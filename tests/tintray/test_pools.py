"""Pools hold what the expert's own processor gives, in a quarter of the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from tests.tiny_zoo import TinyZoo
from tintray.checkpoints.model_folder import open_model_folder
from tintray.checkpoints.processors import load_processor
from tintray.data.reading import Examples
from tintray.errors import CheckpointError
from tintray.models.loading import load_expert
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
    return Examples({"image": images}, "here", np.arange(len(images)))


def images(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("options", [{}, *UNUSUAL])
def test_batches_are_what_the_processor_gives(options: dict[str, Any]) -> None:
    processor = ViTImageProcessor(**({"size": SIZE} | options))
    data = images(11, 16, 16, 3) if "do_resize" in options else images(11, 12, 20, 3)
    pool = build_pool(raw(data), processor)
    expected = processor([Image.fromarray(image) for image in data], return_tensors="pt")
    index = torch.tensor([10, 0, 3])
    found = pool.batch(index)
    assert found.keys() == {"pixel_values"}
    assert torch.allclose(found["pixel_values"], expected["pixel_values"][index].float(), atol=1e-6)
    assert len(pool) == 11


def test_ordinary_pools_are_kept_as_bytes(tiny: TinyZoo) -> None:
    processor = ViTImageProcessor(size=SIZE)
    pool = build_pool(raw(images(5, 12, 20, 3)), processor)
    assert pool.inputs["pixel_values"].dtype == torch.uint8


def test_gray_images_have_three_equal_channels() -> None:
    pool = build_pool(raw(images(3, 12, 12)), ViTImageProcessor(size=SIZE))
    red, green, blue = pool.batch(slice(None))["pixel_values"].unbind(1)
    assert torch.equal(red, green)
    assert torch.equal(red, blue)


def test_digest_is_of_pixels_and_preprocessing() -> None:
    data = images(4, 16, 16, 3)
    changed = data.copy()
    changed[2, 3, 4, 1] ^= 1
    processors = [ViTImageProcessor(size=SIZE), ViTImageProcessor(size=SIZE, image_mean=[0.4] * 3)]
    digests = [build_pool(raw(d), p).digest for d in (data, changed) for p in processors]
    assert len(set(digests)) == 4
    elsewhere = Examples({"image": data.copy()}, "elsewhere", np.arange(4))
    assert build_pool(elsewhere, processors[0]).digest == digests[0]


def test_an_expert_without_a_processor_is_refused(tiny: TinyZoo, tmp_path: Path) -> None:
    folder = tiny.copy(tmp_path / "zoo").folder / "five"
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"five has no usable preprocessor_config\.json"):
        load_processor(open_model_folder(folder), "tasks.five.expert")


def test_predictions_are_the_models_own_in_order(tiny: TinyZoo) -> None:
    """Whatever the batches in which a pool passes the model."""
    checkpoint = open_model_folder(tiny.folder / "three")
    expert = load_expert(checkpoint)
    data = tiny.arrays("three")["x_train"]
    pool = build_pool(raw(data), load_processor(checkpoint, "three"))
    assert len(pool) % 32 != 0
    with torch.inference_mode():
        expected = torch.cat([expert(**pool.batch(torch.tensor([n]))).logits for n in range(40)])
    assert torch.allclose(predict(expert, pool), expected, atol=1e-5)


def test_an_expert_that_answers_nonsense_is_refused(tiny: TinyZoo) -> None:
    checkpoint = open_model_folder(tiny.folder / "three")
    expert = load_expert(checkpoint)
    with torch.no_grad():
        expert.classifier.bias[1] = torch.inf
    data = tiny.arrays("three")["x_train"]
    pool = build_pool(raw(data), load_processor(checkpoint, "three"))
    with pytest.raises(CheckpointError, match=r"tasks\.x\.expert gives NaN .* on 40 of 40 pool"):
        self_labels(expert, pool, "tasks.x.expert")


def test_a_model_of_one_channel_gets_gray_images() -> None:
    processor = ViTImageProcessor(size=SIZE, image_mean=[0.3], image_std=[0.2])
    data = images(4, 16, 16)
    pool = build_pool(raw(data), processor)
    expected = (torch.from_numpy(data).float() / 255 - 0.3) / 0.2
    assert torch.allclose(pool.batch(slice(0, 4))["pixel_values"][:, 0], expected, atol=1e-5)
