"""States of tensors that change, kept by name to go back to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_PREFIX = "kept."


class Snapshots:
    """Copies of ``live`` tensors, which change in place."""

    def __init__(self, live: Mapping[str, Tensor]) -> None:
        self._live = live
        self._kept: dict[str, dict[str, Tensor]] = {}

    def keep(self, name: str, share: float = 1.0) -> None:
        """Keep the present state; with a ``share`` below 1, go that far from what was kept to it.

        A mean of n states is kept by the shares 1, 1/2, …, 1/n.
        """
        if share == 1.0:
            self._kept[name] = {key: tensor.detach().clone() for key, tensor in self._live.items()}
            return
        for key, tensor in self._kept[name].items():
            tensor.lerp_(self._live[key].detach(), share)

    @torch.no_grad()
    def recall(self, name: str) -> None:
        """Go back to what was kept under ``name``."""
        for key, tensor in self._kept[name].items():
            self._live[key].copy_(tensor)

    def state_dict(self) -> dict[str, Tensor]:
        """What was kept, for a checkpoint."""
        return {
            f"{_PREFIX}{name}.{key}": tensor.clone()
            for name, tensors in self._kept.items()
            for key, tensor in tensors.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Keep what is in a checkpoint, whatever else it holds."""
        self._kept = {}
        for found, tensor in state.items():
            if found.startswith(_PREFIX):
                name, _, key = found.removeprefix(_PREFIX).partition(".")
                of_name = self._kept.setdefault(name, {})
                of_name[key] = tensor.to(self._live[key].device, copy=True)
