"""Which methods there are: those in this package, and those that plugins bring.

A plugin names a :class:`Method`, or a module that holds some, in the entry point group
``tintray.methods``::

    [project.entry-points."tintray.methods"]
    median = "my_package.median"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType, ModuleType

from tintray.errors import SpecError, nearest
from tintray.merging.algorithms import (
    essential,
    linear,
    masks,
    pcb,
    sparse,
    spectral,
    spherical,
    statistical,
    wudi,
)
from tintray.merging.declaration import Method, Value

GROUP = "tintray.methods"
_BUILT_IN = (linear, sparse, masks, pcb, spherical, statistical, essential, spectral, wudi)


@dataclass(frozen=True)
class Recipe:
    """A method with the values of its parameters and a seed: plain data, checked once.

    ``parameters`` holds every parameter of the method.
    """

    name: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    seed: int = 0

    @property
    def method(self) -> Method:
        """The method itself."""
        return find_method(self.name)


@cache
def methods() -> Mapping[str, Method]:
    """All methods by name: the built-in ones in the order of the documentation, then plugins.

    Raises
    ------
    SpecError
        If a plugin cannot be loaded, brings no method, or takes a name that is taken.
    """
    known = {method.name: method for module in _BUILT_IN for method in _in_module(module)}
    for point in entry_points(group=GROUP):
        try:
            loaded = point.load()
        except Exception as error:  # what a plugin's own code raises can be anything
            raise SpecError(
                f"the plugin '{point.value}' of {GROUP} cannot be loaded "
                f"({type(error).__name__}: {error}); mend or uninstall it"
            ) from error
        brought = [loaded] if isinstance(loaded, Method) else _in_module(loaded)
        if not brought:
            raise SpecError(
                f"the plugin '{point.value}' of {GROUP} holds no method; expected a function "
                "decorated with tintray.merging.method, or a module with some"
            )
        for method in brought:
            if known.setdefault(method.name, method) is not method:
                raise SpecError(
                    f"the plugin '{point.value}' of {GROUP} brings a method '{method.name}', "
                    "which exists already; give it another name"
                )
    return MappingProxyType(known)


def _in_module(module: object) -> list[Method]:
    members = vars(module).values() if isinstance(module, ModuleType) else ()
    return [value for value in members if isinstance(value, Method)]


def find_method(name: str) -> Method:
    """The method called ``name``, or a ``SpecError`` with the nearest name."""
    known = methods()
    if name not in known:
        raise SpecError(
            f"there is no merging method '{name}'{nearest(name, known)}; "
            f"there are {', '.join(known)}"
        )
    return known[name]


def recipe(name: str, parameters: Mapping[str, Value] | None = None, *, seed: int = 0) -> Recipe:
    """A checked recipe; what is left out takes its default."""
    return Recipe(name, find_method(name).complete(parameters or {}), seed)
