"""Representation Surgery: a small module per task takes the merge's bias out of its features.

f' = f − Up ReLU(Down f), learned so that f', the input of the task's head under the merge, is what
the expert's own would be (Yang et al., arXiv 2402.02705, eq. 5 and 6: an L1 loss, rank 16). The
backbone and the head stay as they are; nothing is read but unlabelled examples. All is computed
where the model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tintray.errors import SpecError
from tintray.models.hooks import seeing_inputs
from tintray.models.structure import device_of, head_modules
from tintray.pools.feeding import batches_on
from tintray.pools.pool import Pool

PREFIX = "surgery."
DOWN, UP = PREFIX + "down", PREFIX + "up"
RANK = 16
STEPS = 1000
_BATCH = 16
_RATE = 1e-3


def head_of(module: nn.Module) -> nn.Module:
    """The one module that turns features into answers.

    Raises
    ------
    SpecError
        If the model has several.
    """
    paths = head_modules(module)
    if len(paths) != 1:
        raise SpecError(
            f"merge.method: 'surgery' works on the input of a model's head, and "
            f"{type(module).__name__} has {len(paths)} ({', '.join(paths)}); choose another method"
        )
    return module.get_submodule(paths[0])


@torch.inference_mode()
def features(module: nn.Module, pool: Pool) -> Tensor:
    """What the head is given over a whole pool, one row per feature vector: [N, d]."""
    captured: list[Tensor] = []

    def capture(_: str, given: Tensor) -> None:
        captured.append(given.float().flatten(0, -2))

    with seeing_inputs({"head": head_of(module)}, capture):
        for batch in batches_on(pool, device_of(module)):
            module(**batch)
    return torch.cat(captured)


def operate(given: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """f' […, d] = f − Up ReLU(Down f) for Down [r, d], Up [d, r]."""
    return given - (given @ down.T).relu() @ up.T


def learn(merged: Tensor, expert: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Down and Up that bring the merge's features [N, d] to the expert's [N, d].

    What is drawn comes from a generator in memory, and is brought to the features at once.
    """
    width, device = merged.shape[1], merged.device
    rank = min(RANK, width)
    start = torch.rand(rank, width, generator=generator) * 2 - 1
    draws = [torch.randint(len(merged), (_BATCH,), generator=generator) for _ in range(STEPS)]
    down = nn.Parameter((start / width**0.5).to(device))
    up = nn.Parameter(down.new_zeros(width, rank))  # at the start nothing is changed
    adam = torch.optim.Adam([down, up], lr=_RATE)
    merged, expert = merged.clone(), expert.clone()  # no longer of inference mode
    for rows in torch.stack(draws).to(device):
        loss = (operate(merged[rows], down, up) - expert[rows]).abs().mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return {DOWN: down.detach(), UP: up.detach()}


def attach(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let the model's head see operated features from now on."""
    down, up = tensors[DOWN], tensors[UP]

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (operate(inputs[0], down, up), *inputs[1:])

    head_of(module).register_forward_pre_hook(before)
