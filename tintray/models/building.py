"""A bound on what a configuration may make of its numbers: layers, widths and tables of positions.

A few bytes in a ``config.json`` can ask for more memory than there is. Modules are built on torch's
meta device, where a tensor takes none, and counted while they are; what is far larger than the
weights that it is built for is refused before it is filled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from tintray.checkpoints.model_folder import ModelFolder
from tintray.errors import CheckpointError
from tintray.files import foreign

_TIMES = 4  # of the numbers that are stored; a tied tensor counts twice, and so does a loaded one
_BESIDE = 2**26  # numbers that need not be stored: heads, tables of positions, causal masks
_MODULES = 100_000


@contextmanager
def bounded(numbers: int, where: str) -> Iterator[None]:
    """Refuse a module that this thread builds, if it has no proportion to ``numbers`` stored ones.

    Raises CheckpointError while it is built.
    """
    most, mine = _TIMES * numbers + _BESIDE, threading.get_ident()
    counted = {"numbers": 0, "modules": 0}

    def add(what: str, count: int, bound: int) -> None:
        if threading.get_ident() != mine:
            return
        counted[what] += count
        if counted[what] > bound:
            raise CheckpointError(
                f"{where}: by its config.json the model has more than {bound:,} {what}, and "
                f"{numbers:,} numbers are stored; expected the config.json of these weights"
            )

    def on_module(_owner: nn.Module, _name: str, _child: Any) -> None:
        add("modules", 1, _MODULES)

    def on_tensor(_owner: nn.Module, _name: str, tensor: Tensor | None) -> None:
        add("numbers", 0 if tensor is None else tensor.numel(), most)

    handles = [
        hooks.register_module_module_registration_hook(on_module),
        hooks.register_module_parameter_registration_hook(on_tensor),
        hooks.register_module_buffer_registration_hook(on_tensor),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def load_weights(
    cls: Any,
    model: ModelFolder,
    config: Any,
    where: str,
    *,
    room: ModelFolder | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, dict[str, Any]]:
    """A model of transformers with the tensors of a checkpoint's own files, and what was left.

    The files are those that were looked at, whatever else lies beside them. ``room`` is another
    model whose size the model may have: the expert whose head a base is given. A tensor that is
    stored as ``dtype`` stays in its file, mapped; any other is copied into memory.

    Raises CheckpointError if transformers cannot build or fill it, or the configuration promises
    far too much.
    """
    stored = [*model.tensors.values(), *(room.tensors.values() if room else ())]
    with ExitStack() as stack:
        stack.enter_context(foreign(f"{where} cannot be loaded as {cls.__name__}"))
        stack.enter_context(bounded(sum(info.numel for info in stored), where))
        state: dict[str, Any] = {}
        for opened in stack.enter_context(model.opened()):
            file = stack.enter_context(safe_open(f"/dev/fd/{opened.fileno()}", framework="pt"))
            state |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        module, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    return module, info
