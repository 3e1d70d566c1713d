"""A zoo that is made in a second: one small ViT and four experts fine-tuned from it.

Each task is called by the number of its classes. Images are class prototypes under noise, so that
experts learn something, conflict, and are sometimes wrong. ``two`` is gray and of another size;
``four`` comes without a test set in the job.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

    from tintray.jobs.config.job_file import JobSpec

TASKS = ("two", "three", "five", "four")
CLASSES = {"two": 2, "three": 3, "five": 5, "four": 4}
WITHOUT_TEST = ("four",)
GPUS = int(os.environ.get("TINTRAY_TEST_GPUS", "0"))
"""Of each worker, in every job of the tests: with 1 they all compute on a GPU."""
POOL, TEST = 40, 48
_STEPS = 30


def comparable(tasks: Sequence[Any]) -> list[Any]:
    """What two evaluations of a merge have in common: all, to the last bit.

    But not if the first was on a GPU and the second, as always later, on a CPU.
    """
    if not GPUS:
        return list(tasks)
    return [(task.name, task.metric, task.tint_parameters, task.test_examples) for task in tasks]


@dataclass(frozen=True)
class TinyZoo:
    """A folder with ``base/``, one folder per expert, and one npz file per task."""

    folder: Path

    def copy(self, target: Path) -> TinyZoo:
        """The same zoo in a folder of its own, to be damaged."""
        return TinyZoo(Path(shutil.copytree(self.folder, target)))

    def task(self, name: str) -> dict[str, Any]:
        """A task's section of the job file, with relative paths."""
        section: dict[str, Any] = {"name": name, "expert": name, "pool": {"path": f"{name}.npz"}}
        if name not in WITHOUT_TEST:
            section["test"] = {"path": f"{name}.npz", "split": "test"}
        return section

    def job(
        self, store: Path, tasks: Sequence[str] = TASKS, **sections: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A job over the zoo, in this process, over in a second; ``sections`` are laid over it.

        Its few rounds are published whatever they learn, without a floor.
        """
        fit = {"rounds": 4, "batch_size": 6, "precision": "float32", "floor": False}
        fit |= sections.pop("fit", {})
        cluster = {"workers": 0, "gpus_per_worker": GPUS, **sections.pop("cluster", {})}
        known = [self.task(name) for name in tasks]
        document = {"name": "tiny", "base": "base", "tasks": known, "fit": fit, "cluster": cluster}
        return {**document, "store": str(store), **sections}

    def spec(
        self, store: Path, tasks: Sequence[str] = TASKS, **sections: Mapping[str, Any]
    ) -> JobSpec:
        """The same, parsed."""
        from tintray.jobs.config.job_file import parse_spec

        return parse_spec(self.job(store, tasks, **sections), folder=self.folder)

    def job_file(self, store: Path, **sections: Mapping[str, Any]) -> Path:
        """The same, as a file in the zoo's folder."""
        import yaml

        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(self.job(store, **sections), sort_keys=False))
        return path

    def arrays(self, task: str) -> dict[str, Any]:
        """The arrays of a task's data file."""
        with np.load(self.folder / f"{task}.npz") as arrays:
            return dict(arrays)

    def replace_arrays(self, task: str, **arrays: Any) -> None:
        """Write a task's data file anew; an array that is None is left out."""
        merged = self.arrays(task) | arrays
        kept = {name: array for name, array in merged.items() if array is not None}
        np.savez(self.folder / f"{task}.npz", **kept)


def make_zoo(folder: Path) -> TinyZoo:
    """Write the zoo below ``folder``; the same bytes every time on the same machine."""
    import torch
    from transformers import ViTForImageClassification, ViTImageProcessor

    from tintray.models.loading import quiet_transformers

    quiet_transformers()
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ViTForImageClassification(_config(classes=6))
        _save(base, processor, folder / "base")
        for task in TASKS:
            arrays = _arrays(task)
            np.savez(folder / f"{task}.npz", **arrays)
            expert = ViTForImageClassification(_config(CLASSES[task]))
            expert.vit.load_state_dict(base.vit.state_dict())
            _fine_tune(expert, processor, arrays["x_train"], arrays["y_train"])
            _save(expert, processor, folder / task)
    return TinyZoo(folder)


def _config(classes: int) -> Any:
    from transformers import ViTConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "image_size": 16, "patch_size": 4, "num_labels": classes}
    return ViTConfig(**sizes, initializer_range=0.2)


def _arrays(task: str) -> dict[str, Any]:
    classes = CLASSES[task]
    random = np.random.default_rng(classes)
    prototypes = random.integers(0, 256, (classes, *_shape(task)))
    arrays: dict[str, Any] = {"class_names": np.array([f"class {n}" for n in range(classes)])}
    for split, examples in (("train", POOL), ("test", TEST)):
        arrays |= _drawn(prototypes, split, examples, random)
    return arrays


def more(task: str, examples: int, seed: int) -> dict[str, Any]:
    """Other examples of a task, ``x_test`` and ``y_test``, drawn as those of its file were."""
    prototypes = np.random.default_rng(CLASSES[task]).integers(
        0, 256, (CLASSES[task], *_shape(task))
    )
    return _drawn(prototypes, "test", examples, np.random.default_rng([seed, CLASSES[task]]))


def _shape(task: str) -> tuple[int, ...]:
    return (12, 12) if task == "two" else (16, 16, 3)


def _drawn(prototypes: Any, split: str, examples: int, random: Any) -> dict[str, Any]:
    labels = random.integers(0, len(prototypes), examples)
    noise = random.normal(0, 60, (examples, *prototypes.shape[1:]))
    images = np.clip(prototypes[labels] * 0.5 + 64 + noise, 0, 255)
    return {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}


def _fine_tune(model: ViTForImageClassification, processor: Any, images: Any, labels: Any) -> None:
    import torch
    from PIL import Image

    inputs = processor([Image.fromarray(image).convert("RGB") for image in images])["pixel_values"]
    pixels, targets = torch.as_tensor(np.stack(inputs)), torch.as_tensor(labels)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
    for _ in range(_STEPS):
        loss = model(pixel_values=pixels, labels=targets).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _save(model: Any, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
