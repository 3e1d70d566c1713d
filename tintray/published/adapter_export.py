"""A merge written as an adapter on its base, in PEFT's format: for merges of LoRA experts.

A sum of low-rank products is a product itself, of at most the sum of their ranks. It is found by
the singular value decomposition of what the merge added to a weight; what is cut off is below the
rounding of the numbers that are stored. Tensors that are no weights of a linear layer or of an
embedding (biases, norms), and the modules that a task owns, are written whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tintray.checkpoints.model_folder import file_sha256
from tintray.checkpoints.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tintray.errors import InputError
from tintray.models.structure import backbone_names, is_linear, is_transposed
from tintray.new_folder import new_folder
from tintray.numerics.low_rank import balanced
from tintray.published.card import CARD, model_card
from tintray.published.files import BACKBONE
from tintray.published.manifest import MANIFEST, FileEntry
from tintray.published.merge import Merge
from tintray.seals import seal
from tintray.tinting.tint_layers import with_low_rank
from tintray.vectors.task_vectors import DOWN, UP

PREFIX = "base_model.model."
"""What PEFT puts before the name of every module of the model that it adapts."""
_ROUNDING = 2 * torch.finfo(torch.float32).eps
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def export_adapter(merge: Merge, task: str | None, directory: Path, base: nn.Module) -> Path:
    """Write a merge as an adapter on its base: one task's for PEFT, or that of all tasks.

    A task's has what the task owns, whole. All tasks' is the merged backbone for PEFT; with the
    tint layers beside it ``tintray.load`` opens it where the base is at hand. ``base`` is the base
    in the experts' class (``models.load_base``).

    Raises InputError if it is no sum of low-rank products, if the task owns what PEFT cannot hold,
    or as ``new_folder``; StorageError if it cannot be written to the end.
    """
    manifest, merged, private = merge.manifest, merge.backbone, None
    if task is not None:
        merged, private = _of_task(merge, task)
    with new_folder(directory, or_empty=True) as partial:
        write_adapter(
            partial, base, merged, manifest.base.source, private, manifest.private_modules
        )
        if task is not None:
            merge.copy_configs(task, partial)
            (partial / "config.json").write_text(json.dumps(merge.config(task), indent=2))
            card = model_card(manifest, task, form="adapter")
        else:
            adapter = [partial / ADAPTER_WEIGHTS, partial / ADAPTER_CONFIG]
            own = {p.name: FileEntry(sha256=file_sha256(p), size=p.stat().st_size) for p in adapter}
            kept = {name: ref for name, ref in manifest.files.items() if name != BACKBONE}
            for name in kept:
                merge.copy(name, partial / name)
            written = seal(manifest.changed(files=kept | own).to_json(), MANIFEST)
            (partial / MANIFEST).write_bytes(written)
            card = model_card(manifest)
        (partial / CARD).write_text(card, encoding="utf-8")
    return directory


def _of_task(merge: Merge, task: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The shared tensors of a task's model with its products added, and what it owns whole."""
    own, below = merge.tint(task), tuple(f"{path}." for path in merge.manifest.private_modules)
    private = {name: tensor for name, tensor in own.items() if name.startswith(below)}
    products = {name: tensor for name, tensor in own.items() if name.endswith((UP, DOWN))}
    beside = sorted(own.keys() - private.keys() - products.keys())
    if beside:
        raise InputError(
            f"task '{task}' of {merge.url} owns the tensor '{beside[0]}', for which an adapter has "
            "no place; export the model itself"
        )
    return with_low_rank(merge.backbone, products), private


def write_adapter(
    folder: Path,
    base: nn.Module,
    merged: Mapping[str, Tensor],
    source: str,
    private: Mapping[str, Tensor] | None = None,
    modules: Sequence[str] = (),
) -> None:
    """Write what turns ``base`` into a merge, as a folder that PEFT loads.

    ``merged`` are the merge's shared tensors by name, ``source`` is the base's folder or hub id.
    ``private`` is what a task owns besides, whole: tensors by name, of these ``modules``.

    Raises InputError if the adapter would be as large as the model, as where experts were
    fine-tuned whole.
    """
    below = tuple(f"{path}." for path in modules)
    names = [name for name in backbone_names(base) if not name.startswith(below)]
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name in names:
        added = merged[name].double() - base.get_parameter(name).detach().double()
        if not added.any():
            continue
        path, _, last = name.rpartition(".")
        owner = base.get_submodule(path)
        product = isinstance(owner, nn.Embedding) or is_linear(owner)
        if product and last == "weight":
            if not torch.isfinite(added).all():
                raise InputError(
                    f"tensor '{name}' of the merge has values that are NaN or infinite; expected "
                    "finite weights, of which products can be made"
                )
            up, down = _factors(added, merged[name])
            ranks[path] = down.shape[0]
            tensors |= named_factors(path, owner, up, down)
        else:
            tensors[PREFIX + name] = merged[name].clone()
    shared = sum(merged[name].numel() for name in names)
    size = sum(tensor.numel() for tensor in tensors.values())
    if not ranks or size >= shared:
        raise InputError(
            f"as an adapter this merge would hold {size:,} numbers, its backbone has {shared:,}; "
            "expected a merge of LoRA adapters without a shared correction, export the model itself"
        )
    for name, tensor in (private or {}).items():
        tensors[PREFIX + name] = tensor.clone()
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    whole = modules if private is not None else ()
    config = adapter_config(base, source, max(ranks.values()), list(ranks), whole)
    # as much as the rank: products are added as they are
    config |= {"rank_pattern": dict(ranks), "alpha_pattern": dict(ranks)}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _factors(added: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 up [m, r] and down [r, n] whose product is ``added`` [m, n], but for rounding."""
    left, values, right = torch.linalg.svd(added, full_matrices=False)
    scale = float(weight.double().square().mean().sqrt())
    least = _ROUNDING * scale * (added.shape[0] ** 0.5 + added.shape[1] ** 0.5)
    rank = max(1, int((values > least).sum()))
    product = balanced(left, values, right, rank)
    return product.up.float(), product.down.float()


def named_factors(path: str, owner: nn.Module, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """Factors under PEFT's names; layers that keep their weight as [in, out] swap them."""
    key = PREFIX + path
    if isinstance(owner, nn.Embedding):
        return {
            f"{key}.lora_embedding_A": up.t().contiguous(),
            f"{key}.lora_embedding_B": down.t().contiguous(),
        }
    if is_transposed(owner):
        up, down = down.t(), up.t()
    return {f"{key}.lora_A.weight": down.contiguous(), f"{key}.lora_B.weight": up.contiguous()}


def adapter_config(
    base_module: nn.Module,
    base: str,
    rank: int,
    targets: Sequence[str],
    modules: Sequence[str] = (),
) -> dict[str, Any]:
    """An ``adapter_config.json`` whose products are added as they are.

    ``base`` is where the base lies, ``targets`` are paths of layers with factors, ``modules`` of
    those that the adapter holds whole.
    """
    name = type(base_module).__name__
    kinds = (kind for ending, kind in _TASK_TYPES.items() if name.endswith(ending))
    return {
        "peft_type": "LORA",
        "task_type": next(kinds, None),
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(targets),
        "modules_to_save": list(modules) or None,
        "fan_in_fan_out": any(is_transposed(base_module.get_submodule(path)) for path in targets),
        "bias": "none",
        "use_rslora": False,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
