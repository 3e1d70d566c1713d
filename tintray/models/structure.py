"""What a model is made of, by name: backbone, head, and the modules that can be tinted.

A model is split once. Everything beside the module called ``base_model_prefix`` (``vit``,
``bert``, ``model``) that owns parameters is the *head*, the rest is the *backbone*. A head that is
tied to the embeddings owns nothing: it is part of the backbone, and stays tied. Names are those of
the module in memory; transformers may spell them otherwise on disk, and both spellings of a tint
site are understood.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tintray.errors import CheckpointError, SpecError, nearest
from tintray.numerics.sites import HEAD, NORMS


def head_modules(module: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that turn features into answers and own parameters.

    They are what the module's attribute ``head_modules`` says where it has one; else the direct
    children beside the backbone; else the output embeddings; else the last child.
    """
    own: Any = module
    named = getattr(own, "head_modules", None)
    if named is not None:
        return tuple(named)
    prefix = getattr(own, "base_model_prefix", "")
    children = {name: child for name, child in module.named_children() if _owns(child)}
    if prefix in children:
        del children[prefix]
    elif hasattr(own, "get_output_embeddings"):
        output = own.get_output_embeddings()
        children = {name: child for name, child in children.items() if child is output}
    else:
        return tuple(children)[-1:]
    return tuple(name for name in children if not _is_tied(module, name))


def _is_tied(module: nn.Module, path: str) -> bool:
    """Whether all parameters below ``path`` are also parameters of something else."""
    named = module.named_parameters(remove_duplicate=False)
    others = {id(parameter) for name, parameter in named if not name.startswith(f"{path}.")}
    return all(id(parameter) in others for parameter in module.get_submodule(path).parameters())


def backbone_names(module: nn.Module) -> list[str]:
    """Names of the backbone's parameters, in the order in which the module declares them.

    A tensor that stands in several places is named once, by the first.

    Raises CheckpointError if nothing is left beside the head.
    """
    heads = tuple(f"{path}." for path in head_modules(module))
    names = [name for name, _ in module.named_parameters() if not name.startswith(heads)]
    if not names:
        raise CheckpointError(
            f"{type(module).__name__} has no backbone apart from its head ({', '.join(heads)}); "
            "expected a model with a task head, such as ViTForImageClassification"
        )
    return names


def tied_names(module: nn.Module) -> dict[str, str]:
    """Other names under which a state dict lists a tensor, with the name by which it is known."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        name: first[id(parameter)]
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if first[id(parameter)] != name
    }


def check_tensors(
    where: str,
    owner: str,
    missing: Sequence[str],
    mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]],
    extra: Sequence[str],
    expected: str = "the weights of one model",
) -> None:
    """Refuse weights that lack a tensor of ``owner``, have one more, or one of another shape.

    ``mismatched`` are names with the shapes found and expected. Raises CheckpointError.
    """
    if missing:
        said = f" lacks tensor '{missing[0]}', which {owner} has"
    elif mismatched:
        name, found, wanted = mismatched[0]
        said = f": tensor '{name}' has shape {list(found)}; {owner} has {list(wanted)}"
    elif extra:
        said = f" has tensor '{extra[0]}', unknown to {owner}"
    else:
        return
    others = len(missing or mismatched or extra) - 1
    more = f" (and {others} more like it)" if others else ""
    raise CheckpointError(f"{where}{said}{more}; expected {expected}")


def assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors, not copies of them, in the place of a module's own; what is tied stays tied.

    Raises RuntimeError if names or shapes are not those of the module.
    """
    tied = tied_names(module)
    aliases = {alias: tensors[name] for alias, name in tied.items() if name in tensors}
    module.load_state_dict({**aliases, **tensors}, strict=True, assign=True)
    for alias, name in tied.items():
        parent, _, attribute = alias.rpartition(".")
        if alias not in tensors:
            setattr(module.get_submodule(parent), attribute, module.get_parameter(name))


def resolve_site(module: nn.Module, site: str, *, field: str = "tint.sites") -> tuple[str, ...]:
    """Module paths of a tint site.

    ``head``; a module's path, spelt as in memory or as on disk; ``norms``, all normalisation
    layers of the backbone; or a pattern such as ``*.attention``, in which ``*`` stands for
    anything: all modules that it fits, as in memory, each with what lies below it.

    Raises SpecError if no module is called so (with the nearest that is), if it is a mere list of
    modules, or if nothing would be left to share.
    """
    if site == HEAD:
        return _heads(module, field)
    if site == NORMS or "*" in site:
        paths = _several(module, site, field)
    else:
        paths = (_one(module, site, field),)
    _check_shares(module, site, paths, field)
    return paths


def _one(module: nn.Module, site: str, field: str) -> str:
    owners = {name: child for name, child in module.named_modules() if name and _owns(child)}
    path = site if site in owners else module_path_of(module, site)
    if path is None or path not in owners:
        raise SpecError(
            f"{field}: {type(module).__name__} has no module '{site}' that owns parameters; "
            f"expected 'head' or a module path such as '{_an_example(module)}'"
            f"{nearest(site, [*_callable(module), HEAD])}"
        )
    if not _is_called(owners[path]):
        raise SpecError(
            f"{field}: '{site}' is a list of modules, not one that can be tinted; expected one "
            f"of them, such as '{_an_example(module, f'{path}.')}'"
        )
    return path


def _several(module: nn.Module, site: str, field: str) -> tuple[str, ...]:
    """The outermost modules that a pattern fits, or all normalisation layers of the backbone."""
    heads = tuple(f"{path}." for path in head_modules(module))
    paths: list[str] = []
    for path, child in module.named_modules():  # parents come before their children
        if site == NORMS:
            fits = not f"{path}.".startswith(heads) and is_norm(child)
        else:
            fits = fnmatchcase(path, site)
        below = any(path.startswith(f"{outer}.") for outer in paths)
        if path and fits and not below and _owns(child) and _is_called(child):
            paths.append(path)
    if not paths:
        what = "no normalisation layer" if site == NORMS else f"no module that fits '{site}'"
        raise SpecError(
            f"{field}: {type(module).__name__} has {what}; expected 'head', a module path or a "
            "pattern such as '*.attention'"
        )
    return tuple(paths)


def _heads(module: nn.Module, field: str) -> tuple[str, ...]:
    heads = head_modules(module)
    if not heads:
        raise SpecError(
            f"{field}: the head of {type(module).__name__} is tied to its embeddings, which all "
            f"tasks share; expected a block, such as '{_an_example(module)}'"
        )
    return heads


def _callable(module: nn.Module) -> list[str]:
    named = module.named_modules()
    return sorted(n for n, child in named if n and _owns(child) and _is_called(child))


def _check_shares(module: nn.Module, site: str, paths: tuple[str, ...], field: str) -> None:
    below = tuple(f"{path}." for path in paths)
    tied = [name for pair in tied_names(module).items() for name in pair]
    for name in tied:
        if name.startswith(below):
            raise SpecError(
                f"{field}: '{site}' holds {name}, which is tied to another tensor that all tasks "
                f"share; expected a module of its own, such as '{_untied(module, paths, tied)}'"
            )
    if all(name.startswith(below) for name in backbone_names(module)):
        raise SpecError(
            f"{field}: '{site}' is the whole backbone, so that nothing would be shared; expected "
            f"a part of it, such as '{_an_example(module)}'"
        )


def _untied(module: nn.Module, paths: Sequence[str], tied: Sequence[str]) -> str:
    """The blocks below a path that holds tied tensors, as a pattern, or else any module."""
    for path in paths:
        for name, child in module.get_submodule(path).named_modules():
            blocks = f"{path}.{name}."
            if isinstance(child, nn.ModuleList) and not any(n.startswith(blocks) for n in tied):
                return f"{blocks}*"
    return _an_example(module)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, as its class is called: LayerNorm, BatchNorm2d, T5LayerNorm."""
    return "Norm" in type(module).__name__ and not any(True for _ in module.children())


def _owns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _is_called(module: nn.Module) -> bool:
    """Whether the module has a forward pass; a ModuleList has none, nothing ever calls it."""
    return type(module).forward is not nn.Module.forward


def _an_example(module: nn.Module, below: str = "") -> str:
    paths = [path for path in _callable(module) if path.startswith(below)]
    blocks = [path for path in paths if path.rsplit(".", 1)[-1].isdigit()]
    return max(blocks or paths, key=lambda path: (-path.count("."), len(path), path))


def module_path_of(module: nn.Module, disk_path: str) -> str | None:
    """Translate ``vit.encoder.layer.5`` (on disk) into ``vit.layers.5`` (in memory).

    transformers offers the conversion only for whole state dicts; run on one, it renames the
    keys and passes tensors through, so each tensor's identity tells its two names. The module is
    the one that owns exactly the tensors below the path; there may be none.
    """
    if not hasattr(module, "config"):
        return None
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


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix: ``nn.Linear``, or GPT-2's ``Conv1D``."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as [in, out], as GPT-2's ``Conv1D`` does."""
    return type(module).__name__ == "Conv1D"


def private_state(module: nn.Module, paths: tuple[str, ...]) -> dict[str, Tensor]:
    """The parameters and buffers below ``paths``, by full name: what a task keeps for itself.

    Numbers of 16 bits become float32.
    """
    return {
        name: tensor.detach().to(_computed(tensor))
        for name, tensor in module.state_dict().items()
        if any(name.startswith(path + ".") for path in paths)
    }


def device_of(module: nn.Module) -> str:
    """Where a model computes: where its first tensor is."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return "cpu" if first is None else str(first.device)


def copy_on(module: nn.Module, device: str) -> nn.Module:
    """A copy of ``module`` on a device, in float32; the module itself if it is that already.

    Numbers of 16 bits go to a GPU as they are, and become float32 there.
    """
    if device == "cpu" and all(p.dtype == _computed(p) for p in module.parameters()):
        return module
    moved: dict[int, Any] = {id(tensor): tensor.to(device) for tensor in module.buffers()}
    for parameter in module.parameters():
        there = parameter.detach().to(device).to(_computed(parameter))
        moved[id(parameter)] = nn.Parameter(there, requires_grad=False)
    return copy.deepcopy(module, moved)


def skeleton(module: nn.Module, given: Iterable[str] = (), device: str | None = None) -> nn.Module:
    """A copy of ``module`` that owns its own tensors, frozen, in evaluation mode; on ``device``.

    Parameters whose names are ``given`` are to be filled in: they have their shape, and no memory.
    Numbers of 16 bits become float32.
    """
    memo: dict[int, Any] = {}
    for name in given:
        like = module.get_parameter(name)
        nothing = torch.zeros((), dtype=_computed(like), device=device).expand(like.shape)
        memo[id(like)] = nn.Parameter(nothing, requires_grad=False)
    for parameter in module.parameters():
        if id(parameter) not in memo:
            own = parameter.detach().to(_computed(parameter), copy=True)
            memo[id(parameter)] = nn.Parameter(own, requires_grad=False)
    copied = copy.deepcopy(module, memo).eval().requires_grad_(False)
    return copied if device is None else copied.to(device)


def _computed(tensor: Tensor) -> torch.dtype:
    half = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return torch.float32 if half else tensor.dtype
