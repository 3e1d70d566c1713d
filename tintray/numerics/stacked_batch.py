"""Examples of many tasks in one batch, and the tensors that each task has of its own, stacked.

What a task does to its examples is done for all tasks at once: K tasks' tensors are one array
[K, …], and their examples are brought into K stretches of the same room. How many kernels that
takes does not depend on K. Nothing here adds in an order that changes from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class StackedBatch:
    """Which task each of N examples belongs to, of K.

    Attributes
    ----------
    tensors
        What tasks own, by name: [K, …] each.
    owner
        The task of each example, int64 [N].
    place
        ``owner * room`` and which of its task's examples it is, int64 [N]: no two are alike.
    room
        How many examples of one task there are at most.
    tasks
        K.
    """

    tensors: Mapping[str, Tensor]
    owner: Tensor
    place: Tensor
    room: int
    tasks: int

    def padded(self, value: Tensor) -> Tensor:
        """[N, …] → [K, room, …]; zeros where a task has no more examples."""
        whole = value.new_zeros(self.tasks * self.room, *value.shape[1:])
        filled = whole.index_copy(0, self.place, value)
        return filled.view(self.tasks, self.room, *value.shape[1:])

    def gathered(self, value: Tensor) -> Tensor:
        """[K, room, …] → [N, …]; of [K, 1, …] every example gets its task's."""
        if value.shape[1] == self.room:
            return value.flatten(0, 1).index_select(0, self.place)
        return self.of_examples(value[:, 0])

    def of_examples(self, stacked: Tensor) -> Tensor:
        """[K, …] → [N, …], what each example's task has; computed in float32.

        As a product with ``one_hot``, whose gradient is one too: summed in a fixed order.
        """
        with torch.autocast(stacked.device.type, enabled=False):
            picked = self.one_hot @ stacked.flatten(1).float()
        return picked.view(-1, *stacked.shape[1:])

    @cached_property
    def one_hot(self) -> Tensor:
        """1 at the task of each example, float32 [N, K]."""
        tasks = torch.arange(self.tasks, device=self.owner.device)
        return (self.owner[:, None] == tasks).float()
