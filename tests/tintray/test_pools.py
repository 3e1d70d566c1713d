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
from tintray.data.labels import Answers
from tintray.data.reading import Examples, read_examples
from tintray.data.source import DataSource
from tintray.errors import CheckpointError, DataError
from tintray.models.loading import load_expert
from tintray.pools.preparing import build_pool
from tintray.tasks.registry import find_kind
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


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_test": images(2, 4, 4)}, ["no array 'x_train'", "its splits are test"]),
        ({}, ["no array 'x_train'", "none"]),
        ({"x_train": images(0, 4, 4)}, ["'x_train'", "is empty", "at least one"]),
        ({"x_train": np.zeros((2, 4, 4))}, ["float64 [2, 4, 4]", "expected uint8"]),
        ({"x_train": images(2, 16)}, ["uint8 [2, 16]", "expected uint8"]),
        ({"x_train": images(2, 4, 4, 2)}, ["uint8 [2, 4, 4, 2]", "[N, height, width, 3]"]),
        ({"x_train": images(2, 0, 4)}, ["is empty"]),
        ({"x_train": np.array([{"a": 1}], dtype=object)}, ["cannot be read"]),
    ],
)
def test_images_that_are_none_are_refused(
    tmp_path: Path, arrays: dict[str, Any], words: list[str]
) -> None:
    path = write(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=r"^tasks\.x\.pool: ") as raised:
        read_examples(DataSource(str(path)), "tasks.x.pool")
    assert [word for word in [str(path), *words] if word not in str(raised.value)] == []


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz cannot be read as an npz file"):
        read_examples(DataSource(str(path)), "tasks.x.pool")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data.npz", x_train=images(50, 16, 16, 3))
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"data\.npz"):
            read_examples(DataSource(str(path)), "tasks.x.pool")


def test_an_archive_with_a_damaged_array_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data.npz", x_train=images(50, 16, 16, 3))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"data\.npz cannot be read"):
        read_examples(DataSource(str(path)), "tasks.x.pool")


def labels_of(path: Path) -> torch.Tensor:
    order = DataSource(str(path), "test")
    return find_kind("classification").read_labels(order, range(3), Answers(3), "tasks.x.test")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, 1, 3]), ["label 3", "3 classes", "0 to 2"]),
        (np.array([0, -1, 2]), ["label -1", "0 to 2"]),
        (np.array([0, 1]), ["2 labels", "each of the 3 examples"]),
        (np.array([[0], [1], [2]]), ["[3, 1]"]),
        (np.array([0.0, 1.0, 2.0]), ["float64", "integer"]),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: Any, words: list[str]) -> None:
    path = write(tmp_path / "data.npz", x_test=images(3, 4, 4), y_test=labels)
    with pytest.raises(DataError, match="'y_test' in") as raised:
        labels_of(path)
    assert [word for word in words if word not in str(raised.value)] == []


def test_labels_of_any_integer_type(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.int32, np.int64):
        path = write(
            tmp_path / "data.npz", x_test=images(3, 4, 4), y_test=np.array([2, 0, 1], dtype=dtype)
        )
        found = labels_of(path)
        assert found.dtype == torch.int64
        assert found.tolist() == [2, 0, 1]


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
