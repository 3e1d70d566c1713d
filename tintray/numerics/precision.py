"""The precision that the fit computes in: float32, or bfloat16 where the processor has it.

Weights, gradients of θ, Λ, the tint layers and their optimisers are float32 in either case; only
the matrix products of the forward and backward passes run in bfloat16 (torch's autocast).
Experts answer their pools in it too. Evaluation is always in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tintray.numerics.choices import Choice, Precision


def resolve(choice: Choice, device: str = "cpu") -> Precision:
    """``auto`` is bfloat16 where the device multiplies it natively, else float32.

    Of a GPU that this machine does not have (its workers may be elsewhere) it is bfloat16.
    """
    if choice != "auto":
        return choice
    if device != "cpu":
        there = torch.cuda.is_available()
        native = not there or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = ""
        with suppress(OSError):  # not Linux: then nothing tells, and float32 is right everywhere
            flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
        native = "avx512_bf16" in flags or "amx_bf16" in flags
    return "bfloat16" if native else "float32"


@contextmanager
def computing(precision: Precision, module: nn.Module, device: str = "cpu") -> Iterator[None]:
    """Run a model's forward pass in ``precision``.

    In bfloat16 on a CPU, attention is written out as matrix products ("eager"): torch's fused
    kernel has no fast bfloat16 path there and takes 1.6 times as long (measured).
    """
    if precision == "float32":
        yield
        return
    config: Any = getattr(module, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    if device == "cpu" and attention == "sdpa":
        config._attn_implementation = "eager"
    try:
        with torch.autocast(device, torch.bfloat16):
            yield
    finally:
        if attention is not None:
            config._attn_implementation = attention
