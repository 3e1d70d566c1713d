"""The state of an optimiser as named tensors, so that it can be kept without a pickle."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer

from tintray.numerics.stacked_adam import PREFIX, AdamRow


def optimiser_tensors(optimiser: Optimizer | AdamRow) -> dict[str, Tensor]:
    """Copies of all that an optimiser remembers, as ``optimiser.<parameter>.<what>``.

    Empty before its first step. Learning rates are not part of it: schedules give them anew.
    """
    if isinstance(optimiser, AdamRow):
        return optimiser.state_tensors()
    return {
        f"{PREFIX}{index}.{name}": tensor.detach().clone()
        for index, state in optimiser.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def restore_optimiser(optimiser: Optimizer | AdamRow, tensors: Mapping[str, Tensor]) -> None:
    """Go back to what :func:`optimiser_tensors` returned; other names are left alone."""
    if isinstance(optimiser, AdamRow):
        optimiser.restore(tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(PREFIX):
            index, _, name = key.removeprefix(PREFIX).partition(".")
            # torch keeps what it is given, and its next step would write into it.
            state.setdefault(int(index), {})[name] = tensor.clone()
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
