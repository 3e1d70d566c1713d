"""Every sort of merge, from models that were never trained: small enough to try each command on.

Three experts of one base are a zoo of their kind. ``one`` and ``two`` are merged; ``three`` is
there to be added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import BertForSequenceClassification, SegformerImageProcessor, ViTImageProcessor

from tests import tiny_models as tiny

CLASSES = {"one": 3, "two": 2, "three": 4}
EXAMPLES = 6
SIDE = 8


def pictures(folder: Path, make: Callable[[int], Any]) -> None:
    """Experts on images; each task has as many classes as its name says."""
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    _save_experts(folder, make, processor)
    for seed, (name, classes) in enumerate(CLASSES.items()):
        random = np.random.default_rng(seed)
        labels = np.arange(EXAMPLES) % classes
        _save_images(folder, name, random, (labels, labels[::-1]))


def scenes(folder: Path) -> None:
    """Experts on every pixel."""

    def make(width: int) -> Any:
        labels = {3: 2, 2: 1}.get(width, 3)  # segments, depth, and segments again
        config = tiny.SEGFORMER | {"initializer_range": 0.5, "num_labels": labels}
        return tiny.model("SegformerForSemanticSegmentation", config)

    size = {"height": SIDE, "width": SIDE}
    _save_experts(folder, make, SegformerImageProcessor(size=size, do_reduce_labels=False))
    for seed, name in enumerate(CLASSES):
        random = np.random.default_rng(seed)
        shape = (EXAMPLES, SIDE, SIDE)
        depth = random.uniform(1, 4, shape).astype(np.float32)
        parts = random.integers(0, 2, shape)
        target = depth if name == "two" else parts
        _save_images(folder, name, random, (target, target))


def texts(folder: Path, make: Callable[[int], Any], answer: str | None = None) -> None:
    """Experts on texts, with a ``label`` or a ``target`` or nothing beside them."""
    names = ["input_ids", "attention_mask"]
    _save_experts(folder, make, tiny.tokenizer(model_input_names=names, eos_token="[SEP]"))
    _save_texts(folder, answer)


def adapters(folder: Path) -> None:
    """LoRA adapters of ranks 2, 3 and 4, with heads of their own."""
    import peft

    tiny._save(tiny.model("BertModel", BERT), tiny.tokenizer(), folder / "base")
    for rank, (name, classes) in enumerate(CLASSES.items(), start=2):
        module = BertForSequenceClassification.from_pretrained(folder / "base", num_labels=classes)
        settings = peft.LoraConfig(task_type="SEQ_CLS", r=rank, target_modules=["query", "dense"])
        adapted = peft.get_peft_model(module, settings)
        for name_, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=4.0 if "classifier" in name_ else 0.1)
        adapted.save_pretrained(folder / name)
    _save_texts(folder, "label")


def _save_texts(folder: Path, answer: str | None) -> None:
    for seed, (name, classes) in enumerate(CLASSES.items()):
        for split in ("train", "test"):
            rows: list[dict[str, Any]] = []
            for n, row in enumerate(tiny.sentences(EXAMPLES, seed + len(split))):
                answers = {"label": n % classes, "target": " ".join(row[:2])}
                own = {answer: answers[answer]} if answer else {}
                rows.append({"text": " ".join(row), **own})
            tiny.save_rows(folder / f"{name}_{split}.jsonl", rows)


def _save_images(folder: Path, name: str, random: Any, targets: tuple[Any, Any]) -> None:
    for split, target in zip(("train", "test"), targets, strict=True):
        images = random.integers(0, 256, (EXAMPLES, SIDE, SIDE, 3)).astype(np.uint8)
        np.savez(folder / f"{name}_{split}.npz", x_train=images, y_train=target)


def _save_experts(folder: Path, make: Callable[[int], Any], processor: Any) -> None:
    """A base, and experts whose shared tensors lie a little elsewhere."""
    base = make(CLASSES["one"]).eval()
    tiny._save(base, processor, folder / "base")
    for seed, (name, classes) in enumerate(CLASSES.items()):
        expert = make(classes).eval()
        own = expert.state_dict()
        random = torch.Generator().manual_seed(seed)
        for key, tensor in base.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if own[key].shape == tensor.shape:
                moved = torch.randn(tensor.shape, generator=random)
                own[key].copy_(tensor * (1 + 0.3 * moved))
            if "classifier" in key:  # it is sure of something
                own[key].mul_(20)
        tiny._save(expert, processor, folder / name)


BERT = tiny.BERT | {"hidden_size": 8, "intermediate_size": 16}
_VIT = BERT | {"image_size": SIDE, "patch_size": 4, "initializer_range": 0.3}
_GPT2 = tiny.GPT2 | {"n_embd": 8, "initializer_range": 0.7}


def _vit(labels: int) -> Any:
    return tiny.model("ViTForImageClassification", _VIT, num_labels=labels)


def _resnet(labels: int) -> Any:
    config = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    return tiny.model("ResNetForImageClassification", config, num_labels=labels)


ZOOS: dict[str, Callable[[Path], None]] = {
    "pictures": partial(pictures, make=_vit),
    "convolutions": partial(pictures, make=_resnet),
    "scenes": scenes,
    "sentences": partial(texts, make=lambda _: tiny.model("GPT2LMHeadModel", _GPT2)),
    "adapters": adapters,
}


@dataclass(frozen=True)
class Sort:
    """A sort of merge: what zoo it is made from, and what its job file says besides."""

    zoo: str = "pictures"
    sections: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(
        default_factory=lambda: dict.fromkeys(CLASSES, "classification")
    )

    def task(self, folder: Path, name: str) -> dict[str, Any]:
        """A task's section of a job file, with absolute paths."""
        suffix = "jsonl" if self.zoo in ("sentences", "adapters") else "npz"
        pool, test = (str(folder / f"{name}_{split}.{suffix}") for split in ("train", "test"))
        found = {"name": name, "kind": self.kinds[name], "expert": str(folder / name)}
        return {**found, "pool": {"path": pool}, "test": {"path": test}}

    def job(self, folder: Path, store: Path) -> dict[str, Any]:
        """The job of the first two tasks, in this process."""
        fit = {"rounds": 2, "batch_size": 3, "precision": "float32", **self.sections.get("fit", {})}
        growth = dict.fromkeys(("rounds", "coefficient_rounds", "refit_rounds"), 2)
        return {
            "name": "tiny",
            "base": str(folder / "base"),
            "store": str(store),
            "tasks": [self.task(folder, name) for name in ("one", "two")],
            "cluster": {"workers": 0},
            "growth": growth | {"target": 0.01, "tolerance": 100},
            **self.sections,
            "fit": fit,
        }


BLOCK = "vit.layers.1"
SORTS = {
    "head": Sort(),
    "block": Sort(sections={"tint": {"sites": BLOCK}}),
    "low rank": Sort(sections={"tint": {"sites": [{"site": BLOCK, "rank": 2}]}}),
    "norms": Sort(sections={"tint": {"sites": "norms"}}),
    "pattern": Sort(sections={"tint": {"sites": "*.mlp"}}),
    "auto": Sort(sections={"tint": {"sites": "auto"}}),
    "coefficients alone": Sort(sections={"tint": {"learned": False}}),
    "adamerging": Sort(sections={"merge": {"method": "adamerging"}}),
    "corrected": Sort(sections={"fit": {"correction_lr": 0.01}, "merge": {"granularity": "block"}}),
    "surgery": Sort(sections={"merge": {"method": "surgery"}}),
    "ties": Sort(sections={"merge": {"method": "ties"}}),
    "own backbones": Sort(sections={"merge": {"method": "emr"}}),
    "lora": Sort("adapters", {"fit": {"correction_lr": 0}}),
    "dense": Sort("scenes", kinds={"one": "segmentation", "two": "depth", "three": "segmentation"}),
    "language": Sort(
        *("sentences", {"tint": {"sites": "transformer.h.1"}}),
        dict.fromkeys(CLASSES, "language_modelling"),
    ),
    "batch norm": Sort("convolutions"),
}


def make_zoo(name: str, folder: Path) -> Path:
    """Write a zoo; the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ZOOS[name](folder)
    return folder


def write_yaml(path: Path, document: Any) -> Path:
    """A YAML file."""
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
