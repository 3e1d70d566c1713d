"""Training the models of the scenes zoo: Segformers for segmentation, depth and normals.

A model answers at a quarter of the image's side; losses and metrics are of its answers enlarged to
the labels. Experts start from the base's encoder and decoder and get a last layer of their own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from benchmarks.zoos.dense_recipe import KINDS, DenseRecipe, kind_of
from benchmarks.zoos.recipe import Schedule
from benchmarks.zoos.scenes import VOID
from benchmarks.zoos.training import INFERENCE_BATCH, single_thread
from tintray.models.loading import quiet_transformers
from tintray.tasks.kinds import KindName
from tintray.tasks.losses import direction_loss, value_loss
from tintray.tasks.registry import find_kind

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps [N, C, H, W] and the indices [N] of their examples to one number."""

_LABEL_TYPES: dict[KindName, torch.dtype] = {
    "segmentation": torch.int64,
    "depth": torch.float32,
    "normals": torch.float32,
}
_WIDTHS: dict[KindName, int] = {"depth": 1, "normals": 3}
_NO_CLASS = -100


def train_base(zoo: Path, recipe: DenseRecipe) -> None:
    """Pretrain the base on all that ``zoo/data/base.npz`` asks, and save it as ``zoo/base``."""
    data = _read(zoo, "base")
    processor = _processor(recipe.side)
    names = [str(name) for name in data["class_names"]]
    kinds = {name: KINDS[name] for name in KINDS}
    labels = {name: _labels(kinds[name], data[f"{name}_train"]) for name in kinds}
    widths = [len(names) if kind == "segmentation" else _WIDTHS[kind] for kind in kinds.values()]

    def loss(maps: Tensor, rows: Tensor) -> Tensor:
        parts = zip(kinds, torch.split(maps, widths, dim=1), strict=True)
        return torch.stack([_loss(kinds[n], part, labels[n][rows]) for n, part in parts]).sum()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = SegformerForSemanticSegmentation(_config(recipe, sum(widths)))
        with torch.no_grad():  # depths start at what they are on average
            model.decode_head.classifier.bias[len(names)] = labels["depth"].mean()
        pixels = _pixels(processor, data["x_train"])
        _fit(model, pixels, loss, recipe.pretraining, recipe.seed)
    _save(model, processor, zoo / "base")


def train_expert(zoo: Path, name: str, recipe: DenseRecipe) -> dict[str, float]:
    """Fine-tune ``zoo/base`` on ``zoo/data/NAME.npz``, save it, and measure it on the test set."""
    data, kind = _read(zoo, name), kind_of(name)
    processor = SegformerImageProcessorPil.from_pretrained(zoo / "base", trust_remote_code=False)
    names = [str(answer) for answer in data["class_names"]] if kind == "segmentation" else []
    train, test = _labels(kind, data["y_train"]), _labels(kind, data["y_test"])
    seed = zlib.crc32(f"{recipe.seed}/{name}".encode())  # whatever the order of the tasks

    def loss(maps: Tensor, rows: Tensor) -> Tensor:
        return _loss(kind, maps, train[rows])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the new last layer, and dropout
        quiet_transformers()  # that the last layer is new is meant
        width = {"num_labels": _WIDTHS[kind]} if kind in _WIDTHS else _named(names)
        model = SegformerForSemanticSegmentation.from_pretrained(
            zoo / "base", ignore_mismatched_sizes=True, trust_remote_code=False, **width
        )
        if kind == "depth":
            with torch.no_grad():
                model.decode_head.classifier.bias.fill_(train.mean())
        schedule = recipe.fine_tuning if name in KINDS else recipe.real_fine_tuning
        _fit(model, _pixels(processor, data["x_train"]), loss, schedule, seed)
    _save(model, processor, zoo / name)
    return find_kind(kind).measure(_answers(model, _pixels(processor, data["x_test"])), test, None)


def _loss(kind: KindName, maps: Tensor, labels: Tensor) -> Tensor:
    """Mean over a batch, of answers enlarged to the labels' size."""
    size = labels.shape[-2:]
    enlarged = interpolate(maps, size=size, mode="bilinear", align_corners=False)
    if kind == "segmentation":
        return cross_entropy(enlarged, labels, ignore_index=_NO_CLASS)
    if kind == "depth":
        return value_loss(enlarged[:, 0], labels).mean()
    return direction_loss(enlarged, labels).mean()


def _fit(
    model: SegformerForSemanticSegmentation,
    pixels: Tensor,
    loss: Loss,
    schedule: Schedule,
    seed: int,
) -> None:
    """AdamW under a one-cycle schedule, on one thread: the same call gives the same bits."""
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    steps = schedule.epochs * -(-len(pixels) // schedule.batch_size)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=schedule.learning_rate, total_steps=steps, pct_start=schedule.warmup
    )
    model.train()
    with single_thread():
        for _ in range(schedule.epochs):
            order = torch.randperm(len(pixels), generator=random)
            for rows in torch.split(order, schedule.batch_size):
                found = loss(model(pixel_values=pixels[rows]).logits, rows)
                optimiser.zero_grad()
                found.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                cycle.step()
    model.eval()


@torch.inference_mode()
def _answers(model: SegformerForSemanticSegmentation, pixels: Tensor) -> Tensor:
    with single_thread():
        return torch.cat(
            [model(pixel_values=part).logits for part in torch.split(pixels, INFERENCE_BATCH)]
        )


def _config(recipe: DenseRecipe, width: int) -> SegformerConfig:
    size = recipe.architecture
    stages = len(size.depths)
    return SegformerConfig(
        num_encoder_blocks=stages,
        depths=list(size.depths),
        hidden_sizes=list(size.hidden_sizes),
        strides=list(size.strides),
        patch_sizes=[7, *[3] * (stages - 1)],
        sr_ratios=[2, *[1] * (stages - 1)],
        num_attention_heads=list(size.heads),
        mlp_ratios=[2] * stages,
        decoder_hidden_size=size.decoder_size,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        num_labels=width,
    )


def _named(names: list[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _labels(kind: KindName, array: NDArray[Any]) -> Tensor:
    """int64 or float32 [N, H, W], of normals [N, 3, H, W]; pixels of no class are -100."""
    found = torch.from_numpy(array).to(_LABEL_TYPES[kind])
    if kind == "normals":
        return found.movedim(-1, 1).contiguous()
    return found.masked_fill(found == VOID, _NO_CLASS) if kind == "segmentation" else found


def _read(zoo: Path, name: str) -> Mapping[str, NDArray[Any]]:
    with np.load(zoo / "data" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def _processor(side: int) -> SegformerImageProcessorPil:
    return SegformerImageProcessorPil(
        size={"height": side, "width": side},
        do_reduce_labels=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def _pixels(processor: SegformerImageProcessorPil, images: NDArray[np.uint8]) -> Tensor:
    """Images uint8 [N, H, W, 3] as the model wants them, float32 [N, 3, H, W]."""
    pixels: Tensor = processor(list(images), return_tensors="pt")["pixel_values"]
    return pixels


def _save(
    model: SegformerForSemanticSegmentation, processor: SegformerImageProcessorPil, folder: Path
) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
