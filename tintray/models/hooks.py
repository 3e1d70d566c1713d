"""See and replace what passes between the modules of a model during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Where = tuple[str, int]
"""A module's path, and which of its calls in a forward pass."""


@dataclass(frozen=True)
class Call:
    """What passed in or out of a module: leaves of a nested structure, and its shape."""

    leaves: list[Any]
    tree: TreeSpec

    @classmethod
    def of(cls, value: Any) -> Call:
        """Take a value apart."""
        leaves, tree = tree_flatten(value)
        return cls(list(leaves), tree)

    def value(self, leaves: Sequence[Any] | None = None) -> Any:
        """The value, with other leaves where they are given."""
        return tree_unflatten(list(self.leaves if leaves is None else leaves), self.tree)


class EnoughError(Exception):
    """Ends a forward pass of which nothing more is asked."""


class Watch:
    """Sees what modules give and what a site's modules get during one forward pass.

    ``outputs`` has every output of a watched module that ended before the site began; a module
    that is called again later is not among them. ``inputs`` has what each call of a module of the
    site got: arguments and keywords. With ``until``, the pass is broken off (``EnoughError``) when
    these calls have been seen.
    """

    def __init__(
        self,
        module: nn.Module,
        watched: Iterable[str],
        site: Sequence[str],
        until: AbstractSet[Where] | None = None,
    ) -> None:
        self.outputs: dict[str, list[Call]] = {}
        self.inputs: dict[Where, Call] = {}
        self._module, self._watched, self._site, self._until = module, list(watched), site, until
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for path in self._watched:
            hook = partial(self._on_output, path)
            handle = self._module.get_submodule(path).register_forward_hook(hook)
            self._stack.callback(handle.remove)
        for path in self._site:
            module = self._module.get_submodule(path)
            self._stack.enter_context(hooked(module, path, self._on_input))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _on_output(self, path: str, _: nn.Module, __: Any, output: Any) -> None:
        if self.inputs:
            self.outputs.pop(path, None)
        else:
            self.outputs.setdefault(path, []).append(Call.of(output))

    def _on_input(self, where: Where, call: Call) -> dict[int, Tensor]:
        self.inputs[where] = call
        if self._until is not None and self._until <= self.inputs.keys():
            raise EnoughError
        return {}


@contextmanager
def answering(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module answer with ``output`` instead of running."""
    module.__dict__["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        del module.__dict__["forward"]


@contextmanager
def hooked(
    module: nn.Module, path: str, begin: Callable[[Where, Call], Mapping[int, Tensor]]
) -> Iterator[None]:
    """Show every call's arguments to ``begin`` before it runs; it says which leaves to replace."""
    calls = count()

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        call = Call.of((args, kwargs))
        replaced = begin((path, next(calls)), call)
        return call.value([replaced.get(n, leaf) for n, leaf in enumerate(call.leaves)])

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def seeing_inputs(
    modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Show ``see`` the first argument of every call of these modules, with the module's name."""
    with ExitStack() as stack:
        for name, module in modules.items():
            hook = module.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
            stack.callback(hook.remove)
        yield


def beside(module: nn.Module, site: Sequence[str]) -> list[str]:
    """The largest modules that do not hold the site: what might run before it as a whole."""
    parts = [path.split(".") for path in site]
    above = {".".join(steps[:end]) for steps in parts for end in range(len(steps))}
    paths: list[str] = []
    waiting = sorted(above)
    while waiting:
        path = waiting.pop()
        for name, child in module.get_submodule(path).named_children():
            full = f"{path}.{name}" if path else name
            if full in above or full in site:
                continue
            if type(child).forward is nn.Module.forward:  # a list: only its entries are called
                waiting.append(full)
            else:
                paths.append(full)
    return paths
