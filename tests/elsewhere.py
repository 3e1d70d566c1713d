"""A device that is not there: its tensors have numbers, and refuse whatever a GPU's would refuse.

What lies ``ELSEWHERE`` computes as in memory, to the same bits; but a tensor there cannot be mixed
with one in memory, has no numpy array, and takes no random numbers from a generator in memory. So a
test without a GPU sees each tensor that is made or left in the wrong place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = "meta"
"""What torch takes the device for: a GPU that it was not built for will not do."""

_aten: Any = torch.ops.aten
_BETWEEN = {_aten._to_copy.default, _aten.copy_.default}  # what copies from device to device
_INDEXED = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default}


class There(Tensor):
    """A tensor on the device, and its numbers, which are in memory in truth."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> There:
        make: Any = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        found: There = make(
            *(cls, numbers.size()),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=ELSEWHERE,
        )
        found.numbers = numbers
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """Numbers are read one by one, as those of a GPU are."""
        return self.numbers.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Made in memory and copied: torch would forget the numbers."""
        return torch.tensor(data, **{"dtype": self.dtype, **options}).to(self.device)

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as for a GPU."""
        raise TypeError("a tensor on another device has no numpy array; copy it to memory first")

    @property  # type: ignore[misc]
    def data(self) -> Tensor:
        """Without gradients."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        assert isinstance(other, There), "a tensor in memory took the place of one elsewhere"
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.numbers = other.numbers


class _Elsewhere(TorchDispatchMode):
    """Makes what is asked for on the device, and notes what is computed in memory."""

    def __init__(self, in_memory: set[str]) -> None:
        super().__init__()
        self._in_memory = in_memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _run(func, args, kwargs or {})
        if not any(isinstance(leaf, There) for leaf in tree_leaves((found, args, kwargs))):
            self._in_memory.add(func.overloadpacket.__name__)
        return found


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is _aten._fused_sdp_choice.default:
        return 0  # plain products: what else there is depends on the device
    leaves = tree_leaves((args, kwargs))
    known = {id(leaf.numbers): leaf for leaf in leaves if isinstance(leaf, There)}
    device = kwargs.get("device")
    there = bool(known) if device is None else torch.device(device).type == ELSEWHERE
    if func is _aten.copy_.default:
        there = isinstance(args[0], There)
    if func not in _BETWEEN:
        _check(func, args[:1] if func in _INDEXED else leaves, there, kwargs)
    given = {name: value for name, value in kwargs.items() if name != "device"}
    if device is not None:
        given["device"] = "cpu"
    plain, named = tree_map(lambda x: x.numbers if isinstance(x, There) else x, (args, given))
    found = func(*plain, **named)
    if func is _aten._to_copy.default and any(found is leaf for leaf in tree_leaves(plain)):
        found = found.clone()

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        return known.get(id(value)) if id(value) in known else There(value)

    return tree_map(placed, found)


def _check(func: Any, leaves: Any, there: bool, kwargs: dict[str, Any]) -> None:
    tensors = [leaf for leaf in tree_leaves(leaves) if isinstance(leaf, Tensor)]
    lost = [t for t in tensors if not isinstance(t, There) and t.device.type == ELSEWHERE]
    assert not lost, f"{func}: the numbers of a tensor elsewhere were lost"
    here = [t for t in tensors if not isinstance(t, There) and t.ndim > 0]
    if here and (there or any(isinstance(t, There) for t in tensors)):
        raise RuntimeError(f"{func}: expected all tensors on one device, found some in memory")
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a generator of the device, found one of the CPU")


def in_truth(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with torch's own meta tensors: for what builds models of them."""

    def undisturbed(*args: Any, **options: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **options)

    return undisturbed


@contextmanager
def elsewhere() -> Iterator[set[str]]:
    """Let there be the device in this block, in all its threads.

    Gives the names of operations, as torch has them, that were computed in memory. There is no
    inference mode, in which torch does not say what an operation is made of; only no gradients.
    """
    in_memory: set[str] = set()
    submit, make = ThreadPoolExecutor.submit, torch.tensor

    def within(pool: Any, run: Callable[..., Any], *args: Any, **options: Any) -> Any:
        def running() -> Any:
            with _Elsewhere(in_memory):
                return run(*args, **options)

        return submit(pool, running)

    def made(data: Any, device: Any = None, **options: Any) -> Tensor:
        found = make(data, **options)  # torch itself would forget the numbers
        return found if device is None else found.to(device)

    def begin(mode: Any) -> None:
        mode.prev = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def end(mode: Any, *_: object) -> None:
        torch.set_grad_enabled(mode.prev)

    submitting = patch.object(ThreadPoolExecutor, "submit", within)
    inference = patch.multiple(torch.inference_mode, __enter__=begin, __exit__=end)
    making = patch.object(torch, "tensor", made)
    with submitting, inference, making, _Elsewhere(in_memory):
        yield in_memory
