"""Training the models of a zoo, one call per model; each call may run in its own process.

A model is an ordinary ``save_pretrained`` folder with its image processor. Training goes through
that processor, so whoever loads the folder sees the pixels that the model was trained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from benchmarks.zoos import adapters
from benchmarks.zoos.recipe import Architecture, Recipe
from benchmarks.zoos.training import accuracy, fine_tune


def train_base(zoo: Path, recipe: Recipe) -> None:
    """Pretrain the base on ``zoo/data/base.npz`` and save it as ``zoo/base``."""
    data = _read(zoo, "base")
    processor = _processor(recipe.architecture)
    model = _new_model(recipe.architecture, _names(data), recipe.seed)
    pixels = _pixels(processor, data["x_train"])
    labels = torch.from_numpy(data["y_train"])
    fine_tune(model, pixels, labels, recipe.pretraining, seed=recipe.seed)
    _save(model, processor, zoo / "base")


def train_expert(zoo: Path, name: str, recipe: Recipe) -> dict[str, float]:
    """Fine-tune ``zoo/base`` on ``zoo/data/NAME.npz``, save it, and measure it on the test set."""
    data = _read(zoo, name)
    processor = ViTImageProcessorPil.from_pretrained(zoo / "base", trust_remote_code=False)
    model = ViTForImageClassification.from_pretrained(zoo / "base", trust_remote_code=False)
    _replace_head(model, _names(data))
    pixels = _pixels(processor, data["x_train"])
    seed = zlib.crc32(f"{recipe.seed}/{name}".encode())  # whatever the order of the tasks
    labels, schedule = torch.from_numpy(data["y_train"]), recipe.fine_tuning
    if recipe.steps is not None:
        schedule = replace(schedule, epochs=-(-recipe.steps * schedule.batch_size // len(labels)))
    if recipe.lora is None:
        fine_tune(model, pixels, labels, schedule, seed=seed)
        _save(model, processor, zoo / name)
    else:
        model = adapters.fine_tune(model, pixels, labels, schedule, recipe.lora, seed)
        adapters.save(model, zoo / name)
    images, truth = _pixels(processor, data["x_test"]), torch.from_numpy(data["y_test"])
    return {"accuracy": accuracy(model, images, truth)}


def _read(zoo: Path, name: str) -> dict[str, Any]:
    with np.load(zoo / "data" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def _names(data: Mapping[str, Any]) -> list[str]:
    return [str(answer) for answer in data["class_names"]]


def _new_model(size: Architecture, class_names: list[str], seed: int) -> ViTForImageClassification:
    config = ViTConfig(
        image_size=size.image_size,
        patch_size=size.patch_size,
        hidden_size=size.hidden_size,
        intermediate_size=4 * size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        initializer_range=size.initializer_range,
        **_labels(class_names),
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def _replace_head(model: ViTForImageClassification, class_names: list[str]) -> None:
    """Give ``model`` a head for these classes that starts at zero: no class is favoured."""
    head = nn.Linear(model.config.hidden_size, len(class_names))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.classifier = head
    model.num_labels = len(class_names)
    model.config.update(_labels(class_names))


def _labels(class_names: list[str]) -> dict[str, dict[int, str] | dict[str, int]]:
    return {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }


def _processor(size: Architecture) -> ViTImageProcessorPil:
    """Gray images become three equal channels in [-1, 1], as most vision models expect theirs."""
    return ViTImageProcessorPil(
        do_convert_rgb=True,
        size={"height": size.image_size, "width": size.image_size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def _pixels(processor: ViTImageProcessorPil, images: NDArray[np.uint8]) -> Tensor:
    """Images uint8 ``[N, H, W]`` as the model wants them, float32 ``[N, 3, H, W]``."""
    from PIL import Image

    pictures = [Image.fromarray(image) for image in images]
    pixels: Tensor = processor(pictures, return_tensors="pt")["pixel_values"]
    return pixels


def _save(
    model: ViTForImageClassification, processor: ViTImageProcessorPil, directory: Path
) -> None:
    try:
        model.save_pretrained(directory)
    except SafetensorError as error:  # how safetensors reports a disk that refuses a write
        raise OSError(f"{directory.name}/model.safetensors: {error}") from error
    processor.save_pretrained(directory)
