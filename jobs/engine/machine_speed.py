"""How fast this machine is at a job's own steps: a few seconds of them, before anything is paid."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tintray.numerics.choices import Precision
from tintray.tinting.tint_layers import FusedModel, TintLayer

_VECTORS = 4  # task vectors in the product that is timed


@dataclass(frozen=True)
class Speed:
    """Seconds on one worker, and operations."""

    forward: float  # of one example
    step: float  # of one example, forward and backward
    flops: float  # floating-point operations of such a step, as torch counts them
    vector: float  # to go through one task vector: to merge it, or to project a gradient onto it


def benchmark_machine(
    fused: FusedModel,
    layer: TintLayer,
    batch: Mapping[str, Tensor],
    theta: Tensor,
    precision: Precision,
    seconds: float,
) -> Speed:
    """Time the passes of one task's batch under θ [P], for about ``seconds`` in all."""
    gradient = torch.zeros_like(theta)
    examples = len(next(iter(batch.values())))

    def step() -> None:
        fused.bind(theta, gradient)
        (output,) = fused.forward([batch], [layer], precision)
        output.float().sum().backward()  # type: ignore[no-untyped-call]

    def forward() -> None:
        with torch.inference_mode():
            fused.bind(theta, None)
            fused.forward([batch], [layer])

    rows = min(_VECTORS, max(1, 2**26 // theta.numel()))
    matrix, weights = theta.repeat(rows, 1), torch.ones(rows)
    with FlopCounterMode(display=False) as counter:
        step()
    found = Speed(
        forward=_timed(forward, 0.25 * seconds) / examples,
        step=_timed(step, 0.65 * seconds) / examples,
        flops=counter.get_total_flops() / examples,
        vector=_timed(lambda: weights @ matrix, 0.1 * seconds) / rows,
    )
    for parameter in layer.parameters:
        parameter.grad = None
    return found


def _timed(run: Callable[[], object], seconds: float) -> float:
    """Seconds of one run: the median of as many as there is time for, the first not counted."""
    run()
    times: list[float] = []
    over = time.perf_counter() + seconds
    while not times or time.perf_counter() < over:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
