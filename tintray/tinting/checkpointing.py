"""Gradient checkpointing: layers keep their inputs alone, and compute the rest again.

The backward pass then takes about a third more time, and the memory of activations no longer grows
with all that a layer computes (Chen et al. 2016, arXiv 1604.06174). What comes out has the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

Again = Callable[[], Callable[[], AbstractContextManager[None]]]
"""Asked while a layer is run, it answers with blocks in which it is run in the same way again."""


def checkpoint_layers(module: nn.Module, again: Again) -> int:
    """Have a model's layers keep no activations for the backward pass; how many do so."""
    layers = list(layers_of(module))
    for layer in layers:
        layer.forward = _checkpointed(layer.forward, again)
    return len(layers)


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a model: those that transformers would checkpoint, else lists of one class.

    None lies within another.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    known = {id(one) for one in module.modules() if isinstance(one, GradientCheckpointingLayer)}
    if not known:
        known = {id(one) for part in module.modules() for one in _listed(part)}
    pending = [module]
    while pending:
        one = pending.pop()
        if id(one) in known:
            yield one
        else:
            pending += one.children()


def _listed(part: nn.Module) -> list[nn.Module]:
    parts = list(part.children())
    listed = isinstance(part, nn.ModuleList | nn.Sequential)
    return parts if listed and len({type(one) for one in parts}) == 1 else []


def _checkpointed(inner: Callable[..., Any], again: Again) -> Callable[..., Any]:
    def forward(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*given, **named)
        from torch.utils.checkpoint import checkpoint

        as_now = again()

        def run(*given: Any, **named: Any) -> Any:
            with as_now():
                return inner(*given, **named)

        return checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False, **named)

    return forward
