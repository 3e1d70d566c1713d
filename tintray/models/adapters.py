"""LoRA adapters as PEFT writes them: read without PEFT, kept as factors.

An adapter folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. To each target it
adds scaling · B·A (Hu et al., arXiv 2106.09685), where scaling is α / r, or α / √r for rsLoRA
(arXiv 2312.03732), and both α and r may go by patterns of names. Whatever else is in the file (a
head in ``modules_to_save``, biases, the untouched layer below factors) replaces the base's tensor
of that name first. What the options of its configuration may be: see ``adapter_options``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tintray.checkpoints.model_folder import ModelFolder
from tintray.checkpoints.weight_files import ADAPTER_CONFIG
from tintray.errors import CheckpointError, nearest
from tintray.files import foreign
from tintray.models.adapter_options import by_pattern, check_options, is_plain
from tintray.models.structure import head_modules, is_transposed, module_path_of, tied_names
from tintray.numerics.low_rank import LowRank

_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<path>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes, under the names of the module in memory."""

    products: Mapping[str, LowRank]  # scaled, by the name of the weight that they are added to
    tensors: Mapping[str, Tensor]  # whole ones by name: a head, biases

    @property
    def rank(self) -> int:
        """The largest rank among its products."""
        return max((product.up.shape[1] for product in self.products.values()), default=0)


def read_adapter(
    model: ModelFolder, module: nn.Module, role: str, *, with_head: bool = True
) -> Adapter:
    """The adapter in an expert's folder, for a module of the expert's class.

    Without its head it fits any module of the class, whatever the number of its classes.

    Raises CheckpointError if it is of a kind that is no plain sum of products, or was made for
    another base.
    """
    config = model.adapter
    assert config is not None, "a whole model is no adapter"
    where = f"{role}: {model.folder}"
    check_options(config, f"{where}/{ADAPTER_CONFIG}")
    pairs: dict[tuple[str, bool], dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in _stored(model, where):
        part = _PART.fullmatch(name)
        if part is None:
            whole[name] = tensor
        else:
            pair = pairs.setdefault((part["path"], part["embedding"] is not None), {})
            pair[part["side"]] = tensor
    if not pairs:
        raise CheckpointError(
            f"{where} holds no factors (lora_A, lora_B); expected an adapter that was trained"
        )
    products = dict(_product(module, *key, pair, config, where) for key, pair in pairs.items())
    _check_named(module, config, [path for path, _ in pairs], [*whole], where)
    tensors = _whole_tensors(module, whole, _saved(config), where)
    if not with_head:
        heads = tuple(f"{path}." for path in head_modules(module))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
        products = {name: pair for name, pair in products.items() if not name.startswith(heads)}
    for name, tensor in tensors.items():
        expected = module.state_dict()[name].shape
        if expected != tensor.shape:
            raise CheckpointError(
                f"{where} has '{name}' with shape {list(tensor.shape)}; the base has "
                f"{list(expected)}, expected an adapter for this base"
            )
    return Adapter(products, tensors)


def _stored(model: ModelFolder, where: str) -> Iterator[tuple[str, Tensor]]:
    """What the file holds, without the copies that PEFT keeps of modules trained whole."""
    with ExitStack() as stack:
        stack.enter_context(foreign(f"{where}: its tensors cannot be read"))
        (opened,) = stack.enter_context(model.opened())
        file = stack.enter_context(safe_open(f"/dev/fd/{opened.fileno()}", framework="pt"))
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if ".original_module." not in name:
            yield name, tensor


def _check_named(
    module: nn.Module, config: Mapping[str, Any], paths: list[str], whole: list[str], where: str
) -> None:
    """Refuse factors that the configuration does not name, and modules that it names in vain.

    PEFT leaves such factors out, and such modules at random.
    """
    targets = config.get("target_modules")
    for path in paths:
        outer = path.partition(".base_layer.")[0]
        if isinstance(targets, str):
            named = not is_plain(targets) or re.fullmatch(targets, outer) is not None
        else:
            named = targets is None or any(_ends(outer, name) for name in targets)
        if not named and targets != "all-linear":
            raise CheckpointError(
                f"{where} has factors of '{path}', which target_modules={targets!r} does not name; "
                "expected the configuration that they were saved with"
            )
    for name in _saved(config):
        inside = [path for path, _ in module.named_modules() if _ends(path, name)]
        if inside and not any(f".{name}." in f".{key}" for key in whole):
            raise CheckpointError(
                f"{where} has no tensor of '{inside[0]}', which modules_to_save names; expected "
                "the file that was saved with the configuration"
            )


def _saved(config: Mapping[str, Any]) -> list[str]:
    """The modules that were trained whole."""
    saved = config.get("modules_to_save") or []
    return [saved] if isinstance(saved, str) else saved


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _whole_tensors(
    module: nn.Module, whole: Mapping[str, Tensor], saved: list[str], where: str
) -> dict[str, Tensor]:
    """Tensors that replace the base's, by the name under which a tied one is known."""
    tied = tied_names(module)
    both = {*tied, *tied.values()}
    replaced: dict[str, Tensor] = {}
    for key, tensor in whole.items():
        own = key.replace(".modules_to_save", "").replace(".base_layer.", ".")
        name = _tensor_name(module, own, where)
        if name in both and any(f".{path}." in f".{own}" for path in saved):
            raise _untied(name, where)
        known = tied.get(name, name)
        if known in replaced and not torch.equal(replaced[known], tensor):
            raise _untied(name, where)
        replaced[known] = tensor
    return replaced


def _untied(name: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"{where} changes '{name}', which the base ties to another tensor, and not that one; "
        "expected an adapter on neither, or a base whose head is not tied"
    )


def apply(adapter: Adapter, module: nn.Module) -> None:
    """Merge an adapter into a module that holds the base's tensors."""
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            module.state_dict()[name].copy_(tensor)
        for name, product in adapter.products.items():
            weight = module.get_parameter(name)
            weight.add_(product.dense().view(weight.shape))


def task_vector(adapter: Adapter, base: nn.Module, names: list[str]) -> dict[str, Tensor | LowRank]:
    """The adapter as a task vector over the backbone tensors ``names``; products stay products."""
    wanted = set(names)
    vector: dict[str, Tensor | LowRank] = {
        name: product for name, product in adapter.products.items() if name in wanted
    }
    for name, tensor in adapter.tensors.items():
        if name not in wanted:
            continue
        difference = tensor - base.get_parameter(name).detach().float()
        product = adapter.products.get(name)
        if product is None:
            vector[name] = difference
        elif difference.any():  # PEFT stores the layer below the factors, most often untouched
            vector[name] = difference + product.dense().view(difference.shape)
    return vector


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
    target = _target(module, path, embedding, where)
    options = f"{where}/{ADAPTER_CONFIG}"
    rank = by_pattern(config.get("rank_pattern"), path, config.get("r"), options)
    if pair["A"].ndim < 2 or pair["B"].ndim < 2 or rank not in (None, pair["A"].shape[0]):
        raise CheckpointError(
            f"{where} has factors of '{path}' of shapes {list(pair['B'].shape)} and "
            f"{list(pair['A'].shape)}; expected matrices of rank {rank}, as {ADAPTER_CONFIG} says"
        )
    scaled = pair["B"] * _scaling(path, pair["A"].shape[0], config, options)
    up, down = scaled.flatten(1), pair["A"].flatten(1)
    if embedding or is_transposed(module.get_submodule(target)):
        up, down = down.t(), up.t()
    name = f"{target}.weight"
    shape = module.get_parameter(name).shape
    if up.shape[1] != down.shape[0] or (up.shape[0], up.shape[0] * down.shape[1]) != (
        shape[0],
        shape.numel(),
    ):
        raise CheckpointError(
            f"{where} changes '{name}' by a product [{up.shape[0]}, {down.shape[1]}]; the base has "
            f"{list(shape)}, expected an adapter for this base"
        )
    tied = tied_names(module)
    if name in tied or name in tied.values():
        raise _untied(name, where)
    return name, LowRank(up.contiguous(), down.contiguous())


def _target(module: nn.Module, path: str, embedding: bool, where: str) -> str:
    """The module that factors belong to, of a kind to whose weight they are added."""
    found = _module_name(module, path.replace(".base_layer.", "."), where)
    owner = module.get_submodule(found)
    kind = type(owner).__name__
    around = module.get_submodule(found.rpartition(".")[0])
    if any(isinstance(known, nn.MultiheadAttention) for known in (owner, around)):
        # versions of PEFT add the product of its output twice, and that of its parts not at all
        kind = "part of a MultiheadAttention, whose output PEFT computes in a way of its own"
    elif isinstance(owner, _CONVOLUTIONS) and owner.groups > 1:
        kind = f"{kind} of several groups"
    elif isinstance(owner, nn.Embedding):
        if embedding:
            return found
    elif not embedding and (isinstance(owner, (nn.Linear, *_CONVOLUTIONS)) or is_transposed(owner)):
        return found
    raise CheckpointError(
        f"{where} has factors of '{path}', a {kind}; expected those of a linear layer, an "
        "embedding or a convolution, as PEFT writes them: merge it into its base first (PEFT's "
        "merge_and_unload)"
    )


def _scaling(path: str, rank: int, config: Mapping[str, Any], where: str) -> float:
    default = config.get("lora_alpha", rank)
    alpha = by_pattern(config.get("alpha_pattern"), path, default, where)
    if alpha is None:  # any other that is no number has been refused with its option
        raise CheckpointError(f"{where} has lora_alpha=None for '{path}'; expected a number")
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _module_name(module: nn.Module, path: str, where: str) -> str:
    modules = dict(module.named_modules())
    if path in modules:
        return path
    translated = module_path_of(module, path)
    if translated is None:
        raise CheckpointError(
            f"{where} changes the module '{path}', which the base lacks"
            f"{nearest(path, modules)}; expected an adapter for this base"
        )
    return translated


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
