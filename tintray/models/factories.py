"""Any ``nn.Module``, built by a function of the user's: ``factory: package.module:function``.

The function is called with what the model's ``config.json`` holds (an empty mapping where there is
none) and returns a module; its weights are then read from ``model.safetensors`` by name. The head
is the module's last child that owns parameters, or what its attribute ``head_modules`` names.
Models of timm and of open_clip come in this way.

A name in a file decides here which code runs, so not every name will do. The function, or class, is
defined in the module that is named, and that module is the user's own: the standard library,
installed packages and tintray itself have to be allowed by ``TINTRAY_ALLOW_FACTORIES``, which holds
modules, packages and ``module:function`` names. This is looked at before anything is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from tintray.checkpoints.tensors import read_tensors
from tintray.errors import SpecError, nearest
from tintray.files import foreign
from tintray.models.structure import check_tensors, head_modules, tied_names

ALLOWED_VARIABLE = "TINTRAY_ALLOW_FACTORIES"
_OFFERED: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {}


def offer(function: Callable[[Mapping[str, Any]], nn.Module]) -> str:
    """Let this process, and no other, build modules by a function of its own; the name it gets."""
    name = f"live:module_{len(_OFFERED) + 1}"
    _OFFERED[name] = function
    return name


def is_allowed(factory: str) -> bool:
    """Whether a factory is allowed by name: itself, its module, or a package above that."""
    if factory in _OFFERED:
        return True
    above = accumulate(factory.partition(":")[0].split("."), "{}.{}".format)
    listed = os.environ.get(ALLOWED_VARIABLE, "").replace(",", " ").split()
    return not {factory, *above}.isdisjoint(listed)


def find(factory: str) -> Callable[[Mapping[str, Any]], nn.Module]:
    """The function, or class, that ``package.module:function`` names.

    Raises SpecError if it may not run, cannot be imported here, or is no function that the module
    defines.
    """
    if factory in _OFFERED:
        return _OFFERED[factory]
    module_name, mark, name = factory.partition(":")
    if not (module_name and mark and name):
        raise SpecError(f"factory: expected package.module:function, found {factory!r}")
    _check_own(factory, module_name)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpecError(
            f"factory: the module '{module_name}' cannot be imported ({error}); install it where "
            "the workers run, or put its folder on PYTHONPATH"
        ) from error
    except Exception as error:  # the user's code may raise anything: its own words are the best
        raise SpecError(
            f"factory: the module '{module_name}' failed with {type(error).__name__}: {error}"
        ) from error
    target = getattr(module, name, None)
    if not (inspect.isfunction(target) or inspect.isclass(target)):
        raise SpecError(
            f"factory: the module '{module_name}' has no function '{name}'"
            f"{nearest(name, vars(module))}"
        )
    if target.__module__ != module_name:
        raise SpecError(
            f"factory: '{name}' of '{module_name}' is defined in '{target.__module__}'; expected a "
            "function or class that the module defines itself"
        )
    return cast(Callable[[Mapping[str, Any]], nn.Module], target)


def _check_own(factory: str, module_name: str) -> None:
    """Refuse modules that are not the user's own; looks for the package, and imports nothing."""
    if is_allowed(factory):
        return
    package = module_name.partition(".")[0]
    if package in sys.stdlib_module_names or package == __name__.partition(".")[0]:
        whose = "belongs to Python" if package in sys.stdlib_module_names else "is tintray's own"
    elif any(_is_installed(place) for place in _places(package)):
        whose = "is of an installed package"
    else:
        return
    raise SpecError(
        f"factory: the module '{module_name}' {whose}; expected one of yours, or its name in "
        f"allow_factories of the configuration ({ALLOWED_VARIABLE})"
    )


def _places(package: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    found = (*(spec.submodule_search_locations or ()), spec.origin) if spec else ()
    return [place for place in found if place]


def _is_installed(place: str) -> bool:
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    known = {Path(folder).resolve() for folder in folders}
    return not known.isdisjoint(Path(place).resolve().parents)


def build(factory: str, config: Mapping[str, Any]) -> nn.Module:
    """A module as the factory makes it, in float32 and in evaluation mode; weights arbitrary.

    Raises SpecError if the factory fails, or gives something else than a module.
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

    Raises CheckpointError if a tensor is missing, left over or of another shape.
    """
    module = build(factory, config)
    heads = tuple(f"{path}." for path in head_modules(module)) if any_head else ()
    tied = tied_names(module)
    own = {name: t.shape for name, t in module.state_dict().items() if not name.startswith(heads)}
    stored: dict[str, Tensor] = {}
    for path in weights:
        with foreign(f"{where}: {path} cannot be read"):
            stored |= {n: t for n, t in read_tensors(path).items() if not n.startswith(heads)}
    check_tensors(
        where,
        "the factory's module",
        sorted(own.keys() - tied.keys() - stored.keys()),
        [(n, t.shape, own[n]) for n, t in stored.items() if own.get(n, t.shape) != t.shape],
        sorted(stored.keys() - own.keys()),
    )
    module.load_state_dict(stored, strict=False)
    return module
