"""Somebody's own training: a small ViT, and three tasks on drawings of one thing each.

    python benchmarks/stranger.py FOLDER models|adapters

It knows nothing of tintray. ``benchmarks.strangers_path`` runs it where tintray was installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

SHAPES = ("circle", "cross", "square", "triangle")
COLOURS = {
    "blue": (60, 90, 220),
    "green": (40, 170, 70),
    "orange": (235, 140, 30),
    "red": (210, 40, 50),
}
PLACES = {"bottom": (16, 23), "left": (9, 16), "right": (23, 16), "top": (16, 9)}
TASKS = {"shapes": SHAPES, "colours": tuple(COLOURS), "places": tuple(PLACES)}
POOL, TEST = 400, 200

PROCESSOR = ViTImageProcessorPil(
    size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
)
Labels = dict[str, Sequence[str]]


def draw(rng: np.random.Generator, shape: str, colour: str, place: str) -> Image.Image:
    image = Image.fromarray(rng.integers(190, 256, (32, 32, 3)).astype("uint8"))
    x, y = (int(at + rng.integers(-2, 3)) for at in PLACES[place])
    r = int(rng.integers(5, 8))
    fill = tuple(int(part + rng.integers(-25, 26)) for part in COLOURS[colour])
    pen, whole = ImageDraw.Draw(image), (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(whole, fill)
    elif shape == "square":
        pen.rectangle(whole, fill)
    elif shape == "triangle":
        pen.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill)
    else:
        pen.rectangle((x - 2, y - r, x + 2, y + r), fill)
        pen.rectangle((x - r, y - 2, x + r, y + 2), fill)
    return image


def make(seed: int, count: int) -> tuple[list[Image.Image], Labels]:
    """Drawings, and what each task says of them."""
    rng = np.random.default_rng(seed)
    drawn = [[str(rng.choice(names)) for names in TASKS.values()] for _ in range(count)]
    of: Labels = dict(zip(TASKS, zip(*drawn, strict=True), strict=True))
    return [draw(rng, *each) for each in drawn], of


def fit(
    model: Any, images: list[Image.Image], said: Sequence[str], steps: int, rate: float
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would only wait for each other over so small a model
    pixels = PROCESSOR(images, return_tensors="pt")["pixel_values"]
    labels = torch.tensor([model.config.label2id[name] for name in said])
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(moved, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(pixels), (32,))
        loss = torch.nn.functional.cross_entropy(model(pixels[rows]).logits, labels[rows])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()


def config(names: Sequence[str]) -> ViTConfig:
    return ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )


def with_adapter(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    linear = {name.rpartition(".")[2] for name, _ in model.named_modules() if "attention" in name}
    wanted = sorted(linear & {"query", "value", "q_proj", "v_proj"})
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=wanted, modules_to_save=["classifier"])
    return get_peft_model(model, lora)


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)


def main(models: Path, adapters: bool) -> None:
    """A base that tells coloured shapes apart, and an expert or an adapter for each task."""
    images, of = make(0, 2000)
    torch.manual_seed(1)
    base = ViTForImageClassification(config([f"{s} {c}" for s in SHAPES for c in COLOURS]))
    both = zip(of["shapes"], of["colours"], strict=True)
    fit(base, images, [f"{shape} {colour}" for shape, colour in both], 300, 2e-3)
    save(base, models / "base")
    for number, (task, names) in enumerate(TASKS.items(), start=1):
        model: Any = ViTForImageClassification.from_pretrained(
            models / "base", config=config(names), ignore_mismatched_sizes=True
        )
        images, of = make(number, 600)
        if adapters:
            model = with_adapter(model)
        fit(model, images, of[task], 250, 5e-3 if adapters else 1e-3)
        save(model, models / task)
        images, of = make(number + 10, POOL + TEST)
        for count, (image, name) in enumerate(zip(images, of[task], strict=True)):
            split = "train" if count < POOL else "test"
            place = models / "data" / task / split / name
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{count}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "adapters")
