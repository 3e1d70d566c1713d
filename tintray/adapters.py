"""LoRA adapters as PEFT writes them: read without PEFT, kept as factors.

An adapter folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. To each target it
adds scaling · B·A (Hu et al., arXiv 2106.09685), where scaling is α / r, or α / √r for rsLoRA
(arXiv 2312.03732), and both α and r may go by patterns of names. Whatever else is in the file (a
head in ``modules_to_save``, biases) replaces the base's tensor of that name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tintray.checkpoints import Checkpoint
from tintray.errors import CheckpointError, nearest
from tintray.stacks import LowRank
from tintray.structure import head_modules, is_transposed, module_path_of

_PREFIX = "base_model.model."
_PART = re.compile(r"^(?P<path>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
# Ways to begin that also change the base: an adapter alone does not say what was fine-tuned.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes, under the names of the module in memory.

    Attributes
    ----------
    products
        Scaled products by the name of the weight that they are added to.
    tensors
        Whole tensors by name: a head, biases.
    """

    products: Mapping[str, LowRank]
    tensors: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        """The largest rank among its products."""
        return max((product.up.shape[1] for product in self.products.values()), default=0)


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether an expert is an adapter on the base, rather than a whole model."""
    return checkpoint.adapter is not None


def read_adapter(
    checkpoint: Checkpoint, module: nn.Module, role: str, *, with_head: bool = True
) -> Adapter:
    """The adapter in an expert's folder, for a module of the expert's class.

    Without its head it fits any module of the class, whatever the number of its classes.

    Raises
    ------
    CheckpointError
        If it is of a kind that is no plain sum of products, or was made for another base.
    """
    config = checkpoint.adapter
    assert config is not None, "is_adapter() comes first"
    where = f"{role}: {checkpoint.folder}"
    _check_kind(config, where)
    with safe_open(checkpoint.weights[0], framework="pt") as file:
        stored = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    pairs: dict[tuple[str, bool], dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        name = key.removeprefix(_PREFIX)
        part = _PART.match(name)
        if part is None:
            own = name.replace(".modules_to_save", "").replace(".base_layer.", ".")
            tensors[_tensor_name(module, own, where)] = tensor
        else:
            pair = pairs.setdefault((part["path"], part["embedding"] is not None), {})
            pair[part["side"]] = tensor
    products = {}
    for (path, embedding), pair in pairs.items():
        name, product = _product(module, path, embedding, pair, config, where)
        products[name] = product
    if not with_head:
        heads = tuple(f"{path}." for path in head_modules(module))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
    for name, tensor in tensors.items():
        expected = _tensor(module, name).shape
        if expected != tensor.shape:
            raise CheckpointError(
                f"{where} has '{name}' with shape {list(tensor.shape)}; the base has "
                f"{list(expected)}, expected an adapter for this base"
            )
    return Adapter(products, tensors)


def apply(adapter: Adapter, module: nn.Module) -> None:
    """Merge an adapter into a module that holds the base's tensors."""
    with torch.no_grad():
        for name, product in adapter.products.items():
            weight = module.get_parameter(name)
            weight.add_(product.dense().view(weight.shape))
        for name, tensor in adapter.tensors.items():
            _tensor(module, name).copy_(tensor)


def task_vector(adapter: Adapter, base: nn.Module, names: list[str]) -> dict[str, Tensor | LowRank]:
    """The adapter as a task vector over the backbone tensors ``names``; products stay products."""
    wanted = set(names)
    vector: dict[str, Tensor | LowRank] = {
        name: product for name, product in adapter.products.items() if name in wanted
    }
    for name, tensor in adapter.tensors.items():
        if name in wanted:
            vector[name] = tensor - base.get_parameter(name).detach()
    return vector


def _check_kind(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{where}/adapter_config.json has peft_type={kind!r}; expected 'LORA', other adapters "
            "have to be merged into their base first (PEFT's merge_and_unload)"
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{where}/adapter_config.json has init_lora_weights={start!r}, which changes the base "
            "too; save it as a plain adapter (PEFT's path_initial_model_for_weight_conversion)"
        )
    for field in ("use_dora", "use_qalora", "trainable_token_indices", "target_parameters"):
        if config.get(field):
            raise CheckpointError(
                f"{where}/adapter_config.json has {field}={config[field]!r}, which is no sum of "
                "low-rank products; merge it into its base first (PEFT's merge_and_unload)"
            )


def _product(
    module: nn.Module,
    path: str,
    embedding: bool,
    pair: Mapping[str, Tensor],
    config: Mapping[str, Any],
    where: str,
) -> tuple[str, LowRank]:
    if pair.keys() != {"A", "B"}:
        raise CheckpointError(
            f"{where} has only one of lora_A and lora_B of '{path}'; expected both"
        )
    found = _module_name(module, path, where)
    name = f"{found}.weight"
    weight = module.get_parameter(name)
    scaled = pair["B"] * _scaling(path, pair["A"].shape[0], config)
    up, down = scaled.flatten(1), pair["A"].flatten(1)
    if embedding or (config.get("fan_in_fan_out") and is_transposed(module.get_submodule(found))):
        up, down = down.t(), up.t()
    if up.shape[1] != down.shape[0] or (up.shape[0], up.shape[0] * down.shape[1]) != (
        weight.shape[0],
        weight.numel(),
    ):
        raise CheckpointError(
            f"{where} changes '{name}' by a product [{up.shape[0]}, {down.shape[1]}]; the base has "
            f"{list(weight.shape)}, expected an adapter for this base"
        )
    return name, LowRank(up.contiguous(), down.contiguous())


def _scaling(path: str, rank: int, config: Mapping[str, Any]) -> float:
    pattern: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = float(_by_pattern(pattern, path, config.get("lora_alpha", rank)))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _by_pattern(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """As PEFT: the first pattern that fits the path, or its end."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def _module_name(module: nn.Module, path: str, where: str) -> str:
    modules = dict(module.named_modules())
    if path in modules:
        return path
    found = module_path_of(module, path)
    if found is None:
        raise CheckpointError(
            f"{where} changes the module '{path}', which the base lacks"
            f"{nearest(path, modules)}; expected an adapter for this base"
        )
    return found


def _tensor_name(module: nn.Module, name: str, where: str) -> str:
    known = module.state_dict().keys()
    if name in known:
        return name
    path, _, last = name.rpartition(".")
    found = f"{_module_name(module, path, where)}.{last}"
    if found not in known:
        raise CheckpointError(
            f"{where} has the tensor '{name}', which the base lacks{nearest(name, known)}; "
            "expected an adapter for this base"
        )
    return found


def _tensor(module: nn.Module, name: str) -> Tensor:
    found: Tensor = module.state_dict(keep_vars=True)[name]
    return found
