"""The pools of many tasks as one, on the device that learns from them, where it has room."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tintray.pools.pool import Pool, alike

WIDTH = 16
"""Texts are cut to a multiple of so many tokens: few widths, each of which is recorded once."""

SHARE = 0.3
"""Of a card's free memory that the pools of a group may take."""


def can_stack(pools: Sequence[Pool]) -> bool:
    """Whether pools are of the same kind, but for the number and the length of their examples."""
    first = pools[0]
    return all(
        pool.mask is None
        and pool.answer_length is None
        and (pool.scale is None) == (first.scale is None)
        and pool.inputs.keys() == first.inputs.keys()
        and all(
            tensor.dtype == first.inputs[name].dtype
            and (tensor.ndim == 2 or tensor.shape[1:] == first.inputs[name].shape[1:])
            for name, tensor in pool.inputs.items()
        )
        for pool in pools
    )


class StackedPools:
    """Examples of many tasks by number: those of the first task, then those of the second, …

    They lie on the device if they take no more than ``SHARE`` of what is free there; else batches
    are put together in main memory, and copied.
    """

    def __init__(self, pools: Sequence[Pool], device: torch.device, pad_token: int = 0) -> None:
        sizes = torch.tensor([len(pool) for pool in pools])
        self.starts = sizes.cumsum(0) - sizes
        self._lengths = _lengths(pools)
        self._scale = self._shift = None
        if pools[0].scale is not None:
            self._scale = torch.stack([_of(pool.scale) for pool in pools]).to(device)
            self._shift = torch.stack([_of(pool.shift) for pool in pools]).to(device)
        # Texts of all tasks are as long, so that batches of one shape are, whoever is in them.
        self._stored = alike([dict(pool.inputs) for pool in pools], pad_token)
        self._resident: dict[str, Tensor] | None = None
        if sum(pool.memory for pool in pools) <= SHARE * _free(device):
            whole = {name: torch.cat(tensors) for name, tensors in self._stored.items()}
            self._resident = {name: tensor.to(device) for name, tensor in whole.items()}
            self._stored = {}

    def width(self, task: int, rows: Tensor) -> int:
        """How many tokens these examples of a task need, rounded up; 0 of what is no text."""
        if self._lengths is None:
            return 0
        longest = int(self._lengths[task][rows].max())
        return -(-longest // WIDTH) * WIDTH

    def host_batch(self, parts: Sequence[tuple[int, Tensor]]) -> dict[str, Tensor] | None:
        """Examples of tasks, in order, where the device has not got them; else None."""
        if self._resident is not None:
            return None
        return {
            name: torch.cat([tensors[task][rows] for task, rows in parts])
            for name, tensors in self._stored.items()
        }

    def inputs(
        self,
        rows: Tensor,
        owner: Tensor,
        width: int,
        given: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Model inputs of N examples by number, int64 [N], that belong to the tasks ``owner``.

        ``given`` is what ``host_batch`` put together, on the device by now.
        """
        if given is None:
            assert self._resident is not None, "what is not here is given"
            given = {name: tensor.index_select(0, rows) for name, tensor in self._resident.items()}
        tokens = given["attention_mask"].shape[1] if width else -1
        found = {
            name: tensor[:, :width] if tensor.ndim == 2 and tensor.shape[1] == tokens else tensor
            for name, tensor in given.items()
        }
        if self._scale is not None and self._shift is not None:
            scale, shift = (of.index_select(0, owner) for of in (self._scale, self._shift))
            found["pixel_values"] = found["pixel_values"].float() * scale + shift
        return found


def _of(factor: Tensor | None) -> Tensor:
    assert factor is not None, "pools are scaled alike"
    return factor


def _lengths(pools: Sequence[Pool]) -> list[Tensor] | None:
    """How many tokens each example has up to its last one that counts; None of what is no text."""
    masks = [pool.inputs.get("attention_mask") for pool in pools]
    found = []
    for mask in masks:
        if mask is None or mask.ndim != 2:
            return None
        positions = torch.arange(1, mask.shape[1] + 1)
        found.append((mask.bool() * positions).amax(1).clamp_min(1))
    return found


def _free(device: torch.device) -> float:
    """Bytes that are free on a card; main memory is asked by whoever plans the job."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
