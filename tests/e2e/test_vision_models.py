"""Vision models beside ViT: convolutions with batch normalisation, dense prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import tintray
from tests import tiny_models as tiny
from tintray.jobs import api
from tintray.models.norms import norm_paths

SIZE = 16


def processor() -> Any:
    from transformers import ViTImageProcessor

    return ViTImageProcessor(size={"height": SIZE, "width": SIZE})


def pixels(images: Any) -> dict[str, torch.Tensor]:
    from PIL import Image

    pictures = [Image.fromarray(image) for image in images]
    return dict(processor()(pictures, return_tensors="pt"))


def classification(folder: Path) -> dict[str, Any]:
    """Two tasks: which of three colours, which of two brightnesses; of different statistics."""
    tasks: dict[str, Any] = {}
    for seed, (name, classes) in enumerate({"colours": 3, "shades": 2}.items()):
        arrays: dict[str, Any] = {}
        random = np.random.default_rng(seed)
        for split, count in (("train", 48), ("test", 40)):
            labels = random.integers(0, classes, count)
            images = random.normal(60 + 60 * seed, 25, (count, SIZE, SIZE, 3))
            for image, label in zip(images, labels, strict=True):
                if classes == 3:
                    image[4:12, 4:12, label] += 60
                else:
                    image[: SIZE // 2] += 50 * (label * 2 - 1)
            arrays |= {f"x_{split}": np.clip(images, 0, 255).astype(np.uint8), f"y_{split}": labels}
        np.savez(folder / f"{name}_train.npz", **arrays)
        np.savez(folder / f"{name}_test.npz", x_train=arrays["x_test"], y_train=arrays["y_test"])
        labels = torch.tensor(arrays["y_train"])
        tasks[name] = (classes, pixels(arrays["x_train"]) | {"labels": labels})
    return tasks


def resnet(labels: int) -> Any:
    return tiny.model("ResNetForImageClassification", tiny.RESNET, num_labels=labels)


def test_convolutions(tmp_path: Path) -> None:
    tasks = classification(tmp_path)
    tiny.experts(tmp_path, resnet, tasks, processor(), lr=1e-2, keep=tiny.is_shared)
    kinds = dict.fromkeys(tasks, "classification")
    summary = api.run(tiny.job(tmp_path, kinds, suffix=".npz", fit={"rounds": 40}))
    assert min(task.expert or 0 for task in summary.tasks) > 0.9
    assert summary.normalised_accuracy > 0.85
    merge = tintray.load(summary.url)
    with np.load(tmp_path / "colours_test.npz") as arrays:
        images, labels = arrays["x_train"], torch.tensor(arrays["y_train"])
    tiny.check_export(merge, "colours", tmp_path, pixels(images[:6]))
    _statistics_matter(merge, images, labels, tmp_path)


def _statistics_matter(merge: Any, images: Any, labels: torch.Tensor, folder: Path) -> None:
    """With the statistics of the base, or of the expert, the merged weights answer worse."""
    module = merge.for_task("colours")
    expert = type(module).from_pretrained(folder / "colours")
    base = type(module).from_pretrained(folder / "base")

    def accuracy(statistics: torch.nn.Module | None) -> float:
        own = merge.for_task("colours")
        if statistics is not None:
            buffers = {
                name: buffer.clone()
                for path in norm_paths(own)
                for name, buffer in statistics.state_dict().items()
                if name.startswith(f"{path}.running")
            }
            own.load_state_dict(buffers, strict=False)
        with torch.inference_mode():
            answers = own(**pixels(images)).logits.argmax(-1)
        return float((answers == labels).float().mean())

    kept = accuracy(None)
    assert kept > accuracy(base) + 0.2
    assert kept >= accuracy(expert)


def scenes(folder: Path) -> dict[str, tuple[int, Any]]:
    """A bright square on a dark ground: where it is, how far, which way it faces."""
    found: dict[str, tuple[int, Any]] = {}
    widths = {"segments": 2, "depths": 1, "normals": 3}
    for seed, (name, width) in enumerate(widths.items()):
        random = np.random.default_rng(seed)
        for split in ("train", "test"):
            images = random.normal(60, 10, (40, 32, 32, 3))
            mask = np.zeros((40, 32, 32), np.int64)
            for image, inside in zip(images, mask, strict=True):
                top, left = random.integers(0, 16, 2)
                image[top : top + 16, left : left + 16] += 120
                inside[top : top + 16, left : left + 16] = 1
            images = np.clip(images, 0, 255).astype(np.uint8)
            target: Any = mask
            if name == "depths":
                target = np.where(mask == 1, 2.0, 4.0).astype(np.float32)
            if name == "normals":
                target = np.where(mask[..., None] == 1, [0.0, 0.0, 1.0], [0.6, 0.0, 0.8])
                target = target.astype(np.float32)
            np.savez(folder / f"{name}_{split}.npz", x_train=images, y_train=target)
            if split == "train":
                found[name] = (width, (images, torch.tensor(target)))
    return found


def segformer(labels: int) -> Any:
    config = tiny.SEGFORMER | {"classifier_dropout_prob": 0.0}
    return tiny.model("SegformerForSemanticSegmentation", config, num_labels=labels)


def test_dense_prediction(tmp_path: Path) -> None:
    """Segmentation, depth and normals on one backbone; experts train with their own losses."""
    from torch.nn.functional import interpolate, l1_loss
    from transformers import SegformerImageProcessor

    from tintray.tasks.losses import direction_loss

    kinds = {"segments": "segmentation", "depths": "depth", "normals": "normals"}
    prepare = SegformerImageProcessor(size={"height": 32, "width": 32}, do_reduce_labels=False)
    torch.manual_seed(0)
    base = segformer(2)
    tiny._save(base, prepare, tmp_path / "base")
    for name, (width, (images, target)) in scenes(tmp_path).items():
        torch.manual_seed(1)
        expert = segformer(width)
        expert.segformer.load_state_dict(base.segformer.state_dict())
        batch = dict(prepare(list(images), return_tensors="pt"))
        optimiser = torch.optim.Adam(expert.parameters(), lr=1e-2)
        expert.train()
        for _ in range(40):
            maps = interpolate(expert(**batch).logits, size=(32, 32), mode="bilinear")
            if name == "segments":
                loss = torch.nn.functional.cross_entropy(maps, target)
            elif name == "depths":
                loss = l1_loss(maps[:, 0], target)
            else:
                loss = direction_loss(maps, target.movedim(-1, 1)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        tiny._save(expert.eval(), prepare, tmp_path / name)
    spec = tiny.job(tmp_path, kinds, suffix=".npz", fit={"rounds": 40})
    summary = api.run(spec)
    found = {task.name: task for task in summary.tasks}
    assert {name: task.metric for name, task in found.items()} == {
        "segments": "miou",
        "depths": "relative_error",
        "normals": "degrees",
    }
    assert (found["segments"].expert or 0) > 0.7
    assert found["segments"].normalised > 0.75
    assert (found["segments"].calibration or {})["merged"]["ece"] < 0.5
    assert found["depths"].calibration is None
    merge = tintray.load(summary.url)
    score = merge.task("depths").score
    assert set(score.details) == {"relative_error", "absolute_error"}
    with np.load(tmp_path / "normals_test.npz") as arrays:
        batch = dict(prepare(list(arrays["x_train"][:3]), return_tensors="pt"))
    tiny.check_export(merge, "normals", tmp_path, batch)
