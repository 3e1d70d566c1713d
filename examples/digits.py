"""Make the demo's models: a base pretrained on written digits, and eight experts from it.

    python examples/digits.py zoo/digits      # needs tintray and scikit-learn, and a minute
    tintray run examples/digits.yaml

The tasks conflict: each expert bends the same small vision transformer to another way of seeing
digits, and the average of their weights serves none of them. No test image of one task was seen in
training by another, or by the base. The same machine makes the same bytes each time.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
from transformers.utils import logging

DIGITS = tuple("0123456789")


def occluded(images: np.ndarray) -> np.ndarray:
    """The three right-hand columns are hidden."""
    return np.where(np.arange(8) < 5, images, 0).astype(np.uint8)


# What each task shows, images uint8 [N, 8, 8]; all but "parity" ask for the digit.
TASKS: dict[str, Any] = {
    "digits": lambda images: images,
    "parity": lambda images: images,
    "turned": lambda images: np.rot90(images, 1, (1, 2)),
    "upside_down": lambda images: np.rot90(images, 2, (1, 2)),
    "mirrored": lambda images: images[:, :, ::-1],
    "inverted": lambda images: 255 - images,
    "scrambled": lambda images: np.roll(images, (4, 4), axis=(1, 2)),
    "occluded": occluded,
}


def load() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits: images uint8 [N, 8, 8] and which digit each one shows, int64 [N]."""
    held = load_digits()
    images = np.round(held.images * (255 / 16)).astype(np.uint8)  # its grays go from 0 to 16
    return images, held.target.astype(np.int64)


def split(digits: np.ndarray) -> list[np.ndarray]:
    """Indices of the base's, the experts' and the tests' part, the same share of each digit."""
    random = np.random.default_rng(0)
    parts: tuple[list[Any], ...] = ([], [], [])
    for digit in range(10):
        members = random.permutation(np.flatnonzero(digits == digit))
        cuts = np.cumsum([round(0.28 * len(members)), round(0.5 * len(members))])
        for part, chosen in zip(parts, np.split(members, cuts), strict=True):
            part.append(chosen)
    return [random.permutation(np.concatenate(part)) for part in parts]


def write_data(folder: Path, tasks: Iterable[str]) -> None:
    """``base.npz``, and of each task a file with a pool and a test set, in ``folder``."""
    images, digits = load()
    base, pool, test = split(digits)
    names = np.array(DIGITS)
    save(folder / "base.npz", x_train=images[base], y_train=digits[base], class_names=names)
    for task in tasks:
        parity = task == "parity"
        shown, asked = np.ascontiguousarray(TASKS[task](images)), digits % 2 if parity else digits
        save(
            folder / f"{task}.npz",
            x_train=shown[pool],
            y_train=asked[pool],
            x_test=shown[test],
            y_test=asked[test],
            class_names=np.array(("even", "odd")) if parity else names,
        )


def save(path: Path, **arrays: Any) -> None:
    """An npz file of plain arrays."""
    np.savez(path, allow_pickle=False, **arrays)


def labels(names: Any) -> dict[str, Any]:
    """Names of classes, as a configuration has them."""
    names = [str(name) for name in names]
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def train_base(zoo: Path) -> None:
    """Pretrain the base on ``data/base.npz``."""
    data = np.load(zoo / "data/base.npz")
    processor = ViTImageProcessorPil(
        do_convert_rgb=True,
        size={"height": 8, "width": 8},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.05,
        **labels(data["class_names"]),
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    pixels, answers = pixels_of(processor, data["x_train"]), torch.from_numpy(data["y_train"])
    fit(model, model, pixels, answers, 2e-3, 20, torch.Generator().manual_seed(0))
    model.save_pretrained(zoo / "base")
    processor.save_pretrained(zoo / "base")


def train_expert(zoo: Path, task: str) -> float:
    """Fine-tune the base on a task, head first, then everything; the accuracy on its test set."""
    data = np.load(zoo / f"data/{task}.npz")
    processor = ViTImageProcessorPil.from_pretrained(zoo / "base")
    model = ViTForImageClassification.from_pretrained(zoo / "base")
    head = nn.Linear(64, len(data["class_names"]))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.classifier, model.num_labels = head, head.out_features
    model.config.update(labels(data["class_names"]))
    pixels, answers = pixels_of(processor, data["x_train"]), torch.from_numpy(data["y_train"])
    random = torch.Generator().manual_seed(zlib.crc32(f"0/{task}".encode()))
    fit(model, head, pixels, answers, 1e-2, 20, random)
    fit(model, model, pixels, answers, 3e-3, 8, random)
    model.save_pretrained(zoo / task)
    processor.save_pretrained(zoo / task)
    with torch.inference_mode():
        found = model(pixel_values=pixels_of(processor, data["x_test"])).logits.argmax(-1)
    return float((found == torch.from_numpy(data["y_test"])).float().mean())


def pixels_of(processor: Any, images: Any) -> torch.Tensor:
    """Images as the model wants them, float32 [N, 3, 8, 8]."""
    pixels: torch.Tensor = processor([Image.fromarray(image) for image in images],
                                     return_tensors="pt")["pixel_values"]  # fmt: skip
    return pixels


def fit(
    model: Any,
    part: nn.Module,
    pixels: torch.Tensor,
    answers: torch.Tensor,
    rate: float,
    epochs: int,
    random: torch.Generator,
) -> None:
    """Train a part of the model, all or its head: AdamW, one cycle, cross-entropy."""
    whole = part is model
    forward = lambda batch: model(pixel_values=pixels[batch]).logits  # noqa: E731
    model.train(whole)
    if not whole:  # its inputs do not change
        with torch.no_grad():
            chunks = torch.split(pixels, 256)
            features = torch.cat([model.vit(chunk).last_hidden_state[:, 0] for chunk in chunks])
        forward = lambda batch: part(features[batch])  # noqa: E731
    optimiser = torch.optim.AdamW(part.parameters(), lr=rate, weight_decay=0.05, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=rate, total_steps=epochs * -(-len(answers) // 32), pct_start=0.2
    )
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(answers), generator=random), 32):
            optimiser.zero_grad()
            cross_entropy(forward(batch), answers[batch]).backward()
            optimiser.step()
            cycle.step()
    model.eval()


def begin() -> None:
    """One thread for each process, and no bars for tiny files."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()


def main(out: Path, tasks: Sequence[str] = tuple(TASKS)) -> None:
    """Make all in a folder beside ``out``, which gets that name when it is whole."""
    if all((out / task / "model.safetensors").is_file() for task in tasks):
        return
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty and holds no digits; name another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "data").mkdir(parents=True)
    write_data(partial / "data", tasks)
    cores = min(4, len(os.sched_getaffinity(0)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, spawn, begin) as pool:
        print("pretraining the base", flush=True)
        pool.submit(train_base, partial).result()
        for task, found in zip(tasks, pool.map(train_expert, repeat(partial), tasks), strict=True):
            print(f"{task}: accuracy {found:.3f}", flush=True)
    if out.exists():
        out.rmdir()
    partial.rename(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
