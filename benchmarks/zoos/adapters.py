"""Experts that are LoRA adapters, fine-tuned and saved by PEFT as its users have them.

The module imports torch and PEFT only when an adapter is made.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.zoos.recipe import Schedule
from tintray.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

# One expression, not a list: PEFT would keep the list as a set, and write it in any order.
_LINEAR = r".*\.(q_proj|k_proj|v_proj|o_proj|fc1|fc2)"


def check_lora(rank: int) -> None:
    """Refuse a rank that is none, or a machine without PEFT.

    Raises
    ------
    InputError
        Naming the option.
    """
    if rank < 1:
        raise InputError(f"--lora: expected a rank of 1 or more, found {rank}")
    if find_spec("peft") is None:
        raise InputError(
            "--lora: adapters are made by PEFT, which is not installed; "
            "install it with: pip install peft"
        )


def fine_tune(
    model: Any, pixels: Tensor, labels: Tensor, schedule: Schedule, rank: int, seed: int
) -> Any:
    """Train the head of a ViT classifier, then it and products of a rank on all linear layers.

    The factors' start is drawn from ``seed``. Returns a PEFT model, whose base stays as it was.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from benchmarks.zoos import training

    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=_LINEAR, modules_to_save=["classifier"]
    )

    def adapt(module: nn.Module) -> nn.Module:
        adapted: nn.Module = get_peft_model(module, settings)
        return adapted

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return training.fine_tune(model, pixels, labels, schedule, seed=seed, adapt=adapt)


def save(model: Any, directory: Path) -> None:
    """Write an adapter folder: factors and head; and what the head's classes are called.

    It names its base as the folder beside it; the base's image processor serves it too.
    """
    model.peft_config["default"].base_model_name_or_path = "../base"
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink()  # PEFT's form of a model card, empty
    labels = {key: model.config.to_dict()[key] for key in ("id2label", "label2id")}
    text = json.dumps(labels, indent=2, sort_keys=True)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
