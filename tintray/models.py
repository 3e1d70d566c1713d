"""Adapters between transformers models and named tensors: what is shared, what is a task's own.

A model is split once, by name: everything under the model's ``base_model_prefix`` (``vit.…``,
``bert.…``) is its *backbone*, the rest is its *head*. Names are those of the module in memory;
transformers may spell them otherwise on disk, and both spellings of a tint site are understood.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tintray.checkpoints import Checkpoint
from tintray.errors import CheckpointError, SpecError, nearest

HEAD = "head"
NORMS = "norms"


def model_class(checkpoint: Checkpoint, role: str) -> Any:
    """The transformers class that wrote the checkpoint, from ``architectures`` in its config."""
    import transformers

    names = checkpoint.config.get("architectures") or []
    found = getattr(transformers, names[0], None) if names else None
    if found is None:
        raise CheckpointError(
            f"{role}: {checkpoint.folder / 'config.json'} has architectures={names!r}; expected "
            f"the name of one transformers model class, as save_pretrained writes it"
        )
    return found


def load_expert(checkpoint: Checkpoint, role: str = "expert") -> nn.Module:
    """Load a model as a module in float32, in evaluation mode, with every tensor accounted for.

    Raises
    ------
    CheckpointError
        If a tensor is missing, left over, of another shape than the config says, or not finite.
    """
    module = _from_pretrained(model_class(checkpoint, role), checkpoint, role)
    _check_finite(module, role, checkpoint)
    return module


def load_base(checkpoint: Checkpoint, like: Checkpoint, role: str = "base") -> nn.Module:
    """Load a base into the class of the experts, whatever head it was saved with, or without.

    The head of the result is untrained and stands for nothing.
    """
    import transformers

    cls = model_class(like, role)
    config = transformers.AutoConfig.for_model(**like.config)
    module = _from_pretrained(cls, checkpoint, role, config=config, any_head=True)
    _check_finite(module, role, checkpoint)
    return module


def empty_module(config: Mapping[str, Any]) -> nn.Module:
    """A module of the class and shape in ``config`` (a ``config.json``); weights arbitrary."""
    import transformers
    from transformers import initialization

    cls = getattr(transformers, config["architectures"][0])
    with initialization.no_init_weights():
        module: nn.Module = cls(transformers.AutoConfig.for_model(**config))
    return module.eval()


def _from_pretrained(
    cls: Any, checkpoint: Checkpoint, role: str, *, config: Any = None, any_head: bool = False
) -> nn.Module:
    quiet_transformers()
    try:
        module, info = cls.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{role}: {checkpoint.folder} cannot be loaded as {cls.__name__}: {first_line}"
        ) from error
    prefix = backbone_prefix(module)

    def counts(name: str) -> bool:
        return not any_head or name.startswith(prefix)

    missing = sorted(name for name in info["missing_keys"] if counts(name))
    mismatched = sorted(item for item in info["mismatched_keys"] if counts(item[0]))
    extra = sorted(name for name in info["unexpected_keys"] if counts(name))
    where = f"{role}: {checkpoint.folder}"
    if missing:
        raise CheckpointError(
            f"{where} lacks tensor '{missing[0]}'{_and_more(missing)}, which a {cls.__name__} needs"
        )
    if mismatched:
        name, found, expected = mismatched[0]
        raise CheckpointError(
            f"{where}: tensor '{name}' has shape {list(found)}; the model configuration expects "
            f"{list(expected)}{_and_more(mismatched)}"
        )
    if extra:
        raise CheckpointError(
            f"{where} has tensor '{extra[0]}'{_and_more(extra)}, unknown to a {cls.__name__}"
        )
    result: nn.Module = module.eval()
    return result


def _and_more(found: list[Any]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def quiet_transformers() -> None:
    """Keep transformers' progress bars and load reports off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _check_finite(module: nn.Module, role: str, checkpoint: Checkpoint) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{role}: tensor '{name}' in {checkpoint.folder} has {bad:,} of {tensor.numel():,} "
                "values that are NaN or infinite; expected finite weights, was the training stable?"
            )


def backbone_prefix(module: nn.Module) -> str:
    """``"vit."`` for a ViT, ``"bert."`` for a BERT: the names that begin so are the backbone."""
    prefix = getattr(module, "base_model_prefix", "")
    if not prefix or not hasattr(module, prefix):
        raise CheckpointError(
            f"{type(module).__name__} has no backbone apart from its head (base_model_prefix is "
            f"{prefix!r}); expected a model with a task head, such as ViTForImageClassification"
        )
    return f"{prefix}."


def backbone_names(module: nn.Module) -> list[str]:
    """Names of the backbone's parameters, in the order in which the module declares them."""
    prefix = backbone_prefix(module)
    return [name for name, _ in module.named_parameters() if name.startswith(prefix)]


def head_modules(module: nn.Module) -> tuple[str, ...]:
    """Paths of the head: the direct children beside the backbone that own parameters."""
    prefix = backbone_prefix(module).removesuffix(".")
    return tuple(
        name
        for name, child in module.named_children()
        if name != prefix and any(True for _ in child.parameters())
    )


_OF_NO_CONSEQUENCE = (
    "_name_or_path",
    "architectures",
    "dropout",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "initializer",
    "label",
    "output_",
    "problem_type",
    "return_dict",
    "transformers_version",
    "use_cache",
)


def check_same_computation(
    base: Checkpoint, expert: Checkpoint, base_role: str, expert_role: str
) -> None:
    """Refuse an expert whose configuration or storage type differs from the base's.

    All tasks pass the same shared layers, so these must mean the same in every expert: a number of
    attention heads or an activation changes what tensors of equal shape compute. What concerns
    only training, labels or loading may differ.

    Raises
    ------
    CheckpointError
        Naming the field and both values.
    """
    for field in sorted(base.config.keys() | expert.config.keys()):
        if any(part in field for part in _OF_NO_CONSEQUENCE):
            continue
        expected, found = base.config.get(field), expert.config.get(field)
        if field in base.config and field in expert.config and expected != found:
            raise CheckpointError(
                f"{expert_role}: {expert.folder / 'config.json'} has {field}={found!r}, "
                f"{base_role} has {expected!r}; expected an expert fine-tuned from this base"
            )
    if base.dtypes != expert.dtypes:
        raise CheckpointError(
            f"{expert_role} is stored as {', '.join(sorted(expert.dtypes))}, {base_role} as "
            f"{', '.join(sorted(base.dtypes))}; expected one type for both, since their difference "
            "would be mostly rounding: save both alike with save_pretrained"
        )


def check_same_backbone(
    base: nn.Module, expert: nn.Module, base_role: str, expert_role: str
) -> None:
    """Refuse an expert whose backbone differs from the base's in a name or a shape.

    Raises
    ------
    CheckpointError
        Naming the tensor, the shape expected and the shape found.
    """
    if type(base) is not type(expert):
        raise CheckpointError(
            f"{expert_role} is a {type(expert).__name__}; the other experts and {base_role} are "
            f"{type(base).__name__}, and only models of one architecture can be merged"
        )
    expected = {name: tuple(base.get_parameter(name).shape) for name in backbone_names(base)}
    found = {name: tuple(expert.get_parameter(name).shape) for name in backbone_names(expert)}
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(
                f"{expert_role} lacks tensor '{name}', which {base_role} has with shape "
                f"{list(shape)}; expected an expert fine-tuned from this base"
            )
        if found[name] != shape:
            raise CheckpointError(
                f"{expert_role}: tensor '{name}' has shape {list(found[name])}; {base_role} has "
                f"{list(shape)}; expected an expert fine-tuned from this base"
            )
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise CheckpointError(
            f"{expert_role} has tensor '{extra[0]}'{_and_more(extra)}, which {base_role} lacks; "
            "expected an expert fine-tuned from this base"
        )


def resolve_site(module: nn.Module, site: str, *, field: str = "tint.site") -> tuple[str, ...]:
    """Module paths of a tint site.

    ``head``; a module's path, spelt as in memory or as on disk; ``norms``, all normalisation
    layers of the backbone; or a pattern such as ``*.attention``, in which ``*`` stands for
    anything: all modules that it fits, as in memory, each with what lies below it.

    Raises
    ------
    SpecError
        If no module is called so (with the nearest that is), if it is a mere list of modules, or
        if nothing would be left to share.
    """
    if site == HEAD:
        return head_modules(module)
    if site == NORMS or "*" in site:
        paths = _several(module, site, field)
        _check_shares(module, site, paths, field)
        return paths
    owners = {name: child for name, child in module.named_modules() if name and _owns(child)}
    path = site if site in owners else _module_path_of(module, site)
    callable_ = sorted(name for name, child in owners.items() if _is_called(child))
    if path is None or path not in owners:
        raise SpecError(
            f"{field}: {type(module).__name__} has no module '{site}' that owns parameters; "
            f"expected 'head' or a module path such as '{_an_example(callable_)}'"
            f"{nearest(site, [*callable_, HEAD])}"
        )
    if not _is_called(owners[path]):
        raise SpecError(
            f"{field}: '{site}' is a list of modules, not one that can be tinted; expected one "
            f"of them, such as '{_an_example([n for n in callable_ if n.startswith(path + '.')])}'"
        )
    _check_shares(module, site, (path,), field)
    return (path,)


def _several(module: nn.Module, site: str, field: str) -> tuple[str, ...]:
    """The outermost modules that a pattern fits, or all normalisation layers of the backbone."""
    prefix = backbone_prefix(module)

    def fits(path: str, child: nn.Module) -> bool:
        if site == NORMS:
            return path.startswith(prefix) and _is_norm(child)
        return fnmatchcase(path, site)

    found: list[str] = []
    for path, child in module.named_modules():  # parents come before their children
        below = any(path.startswith(f"{outer}.") for outer in found)
        if path and not below and _owns(child) and _is_called(child) and fits(path, child):
            found.append(path)
    if not found:
        what = "no normalisation layer" if site == NORMS else f"no module that fits '{site}'"
        raise SpecError(
            f"{field}: {type(module).__name__} has {what}; expected 'head', a module path or a "
            "pattern such as '*.attention'"
        )
    return tuple(found)


def _check_shares(module: nn.Module, site: str, paths: tuple[str, ...], field: str) -> None:
    below = tuple(f"{path}." for path in paths)
    if all(name.startswith(below) for name in backbone_names(module)):
        owners = [name for name, child in module.named_modules() if name and _owns(child)]
        callable_ = sorted(n for n in owners if _is_called(module.get_submodule(n)))
        raise SpecError(
            f"{field}: '{site}' is the whole backbone, so that nothing would be shared; expected "
            f"a part of it, such as '{_an_example(callable_)}'"
        )


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, as its class is called: LayerNorm, BatchNorm2d, T5LayerNorm."""
    return "Norm" in type(module).__name__ and not any(True for _ in module.children())


def _owns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _is_called(module: nn.Module) -> bool:
    """Whether the module has a forward pass; a ModuleList has none, nothing ever calls it."""
    return type(module).forward is not nn.Module.forward


def _an_example(paths: list[str]) -> str:
    blocks = [path for path in paths if path.rsplit(".", 1)[-1].isdigit()]
    return max(blocks or paths, key=lambda path: (-path.count("."), len(path), path))


def _module_path_of(module: nn.Module, disk_path: str) -> str | None:
    """Translate ``vit.encoder.layer.5`` (on disk) into ``vit.layers.5`` (in memory).

    transformers offers the conversion only for whole state dicts; run on one, it renames the
    keys and passes tensors through, so each tensor's identity tells its two names. The module is
    the one that owns exactly the tensors below the path; there may be none.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state = module.state_dict()
    in_memory = {id(tensor): name for name, tensor in state.items()}
    below = {
        in_memory[id(tensor)]
        for disk, tensor in revert_weight_conversion(module, state).items()
        if id(tensor) in in_memory and disk.startswith(disk_path + ".")
    }
    if not below:
        return None
    path = min(below)
    while "." in path:
        path = path.rpartition(".")[0]
        if {name for name in state if name.startswith(path + ".")} == below:
            return path
    return None


def private_state(module: nn.Module, paths: tuple[str, ...]) -> dict[str, Tensor]:
    """The parameters and buffers below ``paths``, by full name: what a task keeps for itself."""
    return {
        name: tensor.detach()
        for name, tensor in module.state_dict().items()
        if any(name.startswith(path + ".") for path in paths)
    }


def skeleton(module: nn.Module) -> nn.Module:
    """A copy of ``module`` that owns its own tensors, frozen, in evaluation mode."""
    return copy.deepcopy(module).eval().requires_grad_(False)
