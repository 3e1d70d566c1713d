"""Merges to be served, of any number of tasks and versions, made without fits.

The model has the shape of the hard zoo's, and each task owns what `examples/ten-scripts.yaml` gives
it: a prompt of rank 16 and its head. Nothing was learned: what is measured is time, memory, and
whether answers are those of `for_task`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import tintray
from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.published.files import BACKBONE, COEFFICIENTS, config_file, tint_file
from tintray.published.merge import Merge
from tintray.storage.artifacts.publish import publish_merge
from tintray.storage.artifacts.store import open_store

SHAPE: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
SHAPE |= {"intermediate_size": 512, "image_size": 32, "patch_size": 4, "initializer_range": 0.1}
CLASSES = 10
POOL = 8


def two_tasks(folder: Path) -> Merge:
    """A merge of two tasks, through the whole of a job of one round."""
    base = ViTForImageClassification(ViTConfig(**SHAPE, num_labels=CLASSES))
    random = np.random.default_rng(0)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    tasks = []
    for name in ("base", "one", "two"):
        with torch.no_grad():
            for parameter in base.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        base.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        if name == "base":
            continue
        images = random.integers(0, 256, (POOL, 32, 32, 3)).astype(np.uint8)
        np.savez(folder / f"{name}.npz", x_train=images)
        pool = {"path": str(folder / f"{name}.npz")}
        tasks.append({"name": name, "expert": str(folder / name), "pool": pool})
    document: dict[str, Any] = {"name": "two", "base": str(folder / "base"), "tasks": tasks}
    document |= {"store": str(folder / "store"), "cluster": {"workers": 0}}
    document |= {"tint": {"sites": [{"site": "prompt", "rank": 16}, "head"]}, "fit": {"rounds": 1}}
    return tintray.run(tintray.parse_spec(document, folder=folder))


def publish(seed: Merge, store: Path, tasks: int, version: int, name: str = "many") -> str:
    """A version of a merge of so many tasks; backbone and tints differ from version to version."""
    made = torch.Generator().manual_seed(version)

    def moved(tensors: dict[str, torch.Tensor]) -> bytes:
        return tensors_as_bytes(
            {n: t + 0.02 * torch.randn(t.shape, generator=made) for n, t in tensors.items()}
        )

    names = [f"task{number:03}" for number in range(tasks)]
    like = seed.manifest.tasks[0]
    files: dict[str, Any] = {BACKBONE: moved(seed.backbone)}
    units = len(seed.manifest.units)
    files[COEFFICIENTS] = tensors_as_bytes({"coefficients": torch.zeros(tasks, units)})
    for task in names:
        files[tint_file(task)] = moved(seed.tint(like.name))
        for path in seed.config_files(like.name):
            own = path.removeprefix(config_file(like.name, ""))
            files[config_file(task, own)] = seed.read(path)
    score = like.score.model_dump()
    entries = [like.changed(name=task, score={**score, "task": task}).to_json() for task in names]
    manifest = seed.manifest.unpublished(tasks=entries).to_json()
    return publish_merge(open_store(str(store)), name, files, manifest, version=version)
