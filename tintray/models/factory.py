"""Any ``nn.Module``, built by a function of the user's: ``factory: package.module:function``.

The function is called with what the model's ``config.json`` holds (an empty mapping where there is
none) and returns a module; its weights are then read from ``model.safetensors`` by name. The head
is the module's last child that owns parameters, or what its attribute ``head_modules`` names.
Models of timm and of open_clip come in this way.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from tintray.errors import CheckpointError, SpecError, nearest
from tintray.structure import head_modules, tied_names


def find(factory: str) -> Callable[[Mapping[str, Any]], nn.Module]:
    """The function that ``package.module:function`` names.

    Raises
    ------
    SpecError
        If it cannot be imported here, or is no function.
    """
    module_name, mark, name = factory.partition(":")
    if not (module_name and mark and name):
        raise SpecError(f"factory: expected package.module:function, found {factory!r}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpecError(
            f"factory: the module '{module_name}' cannot be imported ({error}); install it where "
            "the workers run, or put its folder on PYTHONPATH"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise SpecError(
            f"factory: the module '{module_name}' has no function '{name}'"
            f"{nearest(name, vars(module))}"
        )
    function: Callable[[Mapping[str, Any]], nn.Module] = found
    return function


def build(factory: str, config: Mapping[str, Any]) -> nn.Module:
    """A module as the factory makes it, in float32 and in evaluation mode; weights arbitrary.

    Raises
    ------
    SpecError
        If the factory fails, or gives something else than a module.
    """
    function = find(factory)
    try:
        module = function(dict(config))
    except Exception as error:  # the user's code may raise anything: its own words are the best
        raise SpecError(
            f"factory: {factory} failed with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise SpecError(
            f"factory: {factory} returned a {type(module).__name__}; expected a torch.nn.Module"
        )
    return module.float().eval()


def load(
    factory: str,
    config: Mapping[str, Any],
    weights: Sequence[Path],
    where: str,
    *,
    any_head: bool = False,
) -> nn.Module:
    """A module with the weights of a checkpoint, every tensor accounted for.

    With ``any_head`` the head stays as the factory made it, whatever the file has.

    Raises
    ------
    CheckpointError
        If a tensor is missing, left over or of another shape.
    """
    module = build(factory, config)
    heads = tuple(f"{path}." for path in head_modules(module)) if any_head else ()
    tied, own = tied_names(module), module.state_dict()
    stored: dict[str, Tensor] = {}
    for path in weights:
        with safe_open(path, framework="pt") as file:
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stored = {name: t for name, t in stored.items() if not (heads and name.startswith(heads))}
    wanted = {name for name in own if name not in tied and not (heads and name.startswith(heads))}
    for name in sorted(wanted - stored.keys()):
        raise CheckpointError(f"{where} lacks tensor '{name}', which the factory's module needs")
    for name in sorted(stored.keys() - own.keys()):
        raise CheckpointError(f"{where} has tensor '{name}', unknown to the factory's module")
    for name, tensor in stored.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{where}: tensor '{name}' has shape {list(tensor.shape)}; the factory's module "
                f"has {list(own[name].shape)}"
            )
    module.load_state_dict(stored, strict=False)
    return module
