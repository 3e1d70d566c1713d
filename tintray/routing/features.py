"""What tells the inputs of one task from those of another: cheap statistics of an example.

They are read from a model's inputs, not from its layers. Layers learn to forget what sets data
sets apart (how edges fall off, how ink lies on its paper); docs/routing.md has the comparison.
So they cost little beside a forward pass, and they stay as they are however the backbone changes.

All shares are taken to their square root, as the Hellinger distance has it: that keeps what is
rare from drowning in what is frequent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from tintray.errors import InputError

Form = Literal["images-1", "tokens-1"]
"""Which statistics they are; another number stands for others, which cannot be compared."""

FORMS: Final[tuple[Form, ...]] = ("images-1", "tokens-1")
BUCKETS = 512
"""Over which the numbers of tokens are spread."""

_MULTIPLIER = 2654435761  # Knuth's, 2**32 over the golden ratio: spreads neighbours far apart
_STEPS = torch.tensor([0.01, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0])
_SIGNED = torch.cat([-_STEPS.flip(0), _STEPS])
_COARSE = torch.tensor([-0.5, -0.12, -0.01, 0.01, 0.12, 0.5])
_LEVELS = torch.linspace(-2.7, 2.7, 65)[1:-1]  # processors scale pixels to somewhere in there
_CURVED = torch.tensor([-0.9, -0.5, 0.0, 0.5, 0.9])
_GRID = 16


def form_of(inputs: Mapping[str, Tensor]) -> Form | None:
    """Which statistics a model's inputs have; None if they are neither images nor tokens."""
    pixels, tokens = inputs.get("pixel_values"), inputs.get("input_ids")
    if pixels is not None and pixels.ndim == 4 and min(pixels.shape[-2:]) >= 3:
        return "images-1"
    return "tokens-1" if tokens is not None and tokens.ndim == 2 else None


def features(inputs: Mapping[str, Tensor]) -> Tensor:
    """Statistics [N, D], float32, of each of N examples, as a processor or tokenizer gives them.

    Raises InputError if they are neither images ``pixel_values`` [N, C, H, W] nor tokens
    ``input_ids`` [N, S].
    """
    form = form_of(inputs)
    if form is None:
        shown = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
        raise InputError(
            "expected images (pixel_values [N, C, height, width], 3 pixels wide at least) or "
            f"tokens (input_ids [N, S]) to tell tasks apart by, found {shown or 'nothing'}"
        )
    if form == "images-1":
        return _of_images(inputs["pixel_values"].float())
    return _of_tokens(inputs["input_ids"], inputs.get("attention_mask"))


def _of_images(pixels: Tensor) -> Tensor:
    """Levels, edges and their neighbours, where ink lies, colours: of images [N, C, H, W]."""
    gray = pixels.mean(1)
    across, down = gray[:, :, 1:] - gray[:, :, :-1], gray[:, 1:] - gray[:, :-1]
    inner = gray[:, 1:-1, 1:-1]
    sides = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    curve = 2 * inner - sides / 2
    edges = (across, down, curve, across.diff(dim=1), across.diff(dim=2), down.diff(dim=1))
    found = [_shares(gray, _LEVELS), *(_shares(edge, _SIGNED) for edge in edges)]
    found += [
        _pairs(across[:, :-1], down[:, :, :-1], _COARSE, _COARSE),
        _pairs(across[:, :, 1:], across[:, :, :-1], _COARSE, _COARSE),
        _pairs(down[:, 1:], down[:, :-1], _COARSE, _COARSE),
        _pairs(inner, curve, _CURVED, _COARSE),
        *_layout(gray),
        *_colours(pixels, gray),
    ]
    return torch.cat(found, 1)


def _shares(values: Tensor, edges: Tensor) -> Tensor:
    """Square roots of the shares [N, B] of an example's values between the edges."""
    return _counted(torch.bucketize(values.contiguous(), edges), len(edges) + 1)


def _pairs(one: Tensor, other: Tensor, edges: Tensor, others: Tensor) -> Tensor:
    """The same for pairs of values."""
    width = len(others) + 1
    first = torch.bucketize(one.contiguous(), edges)
    both = first * width + torch.bucketize(other.contiguous(), others)
    return _counted(both, (len(edges) + 1) * width)


def _counted(places: Tensor, width: int) -> Tensor:
    flat = places.flatten(1)
    counts = torch.zeros(len(flat), width)
    counts.scatter_add_(1, flat, torch.ones(()).expand(flat.shape))
    return (counts / max(1, flat.shape[1])).sqrt()


def _layout(gray: Tensor) -> list[Tensor]:
    """How light, how varied and how extreme rows and columns are, on a coarse grid."""
    plane = gray[:, None]
    mean = functional.adaptive_avg_pool2d(plane, _GRID)[:, 0] / 4
    most = functional.adaptive_max_pool2d(plane, _GRID)[:, 0] / 4
    least = -functional.adaptive_max_pool2d(-plane, _GRID)[:, 0] / 4
    rows = [part for axis in (1, 2) for part in (2 * mean.mean(axis), mean.std(axis))]
    return rows + [part for axis in (1, 2) for part in (most.amax(axis), least.amin(axis))]


def _colours(pixels: Tensor, gray: Tensor) -> list[Tensor]:
    """How channels differ, and where; nothing of gray images with one channel."""
    if pixels.shape[1] < 3:
        return []
    differences = [_shares(pixels[:, n] - pixels[:, n + 1], _SIGNED) for n in range(2)]
    chroma = functional.adaptive_avg_pool2d(pixels[:, :2] - gray[:, None], 4)
    return [*differences, chroma.flatten(1) / 2]


def _of_tokens(tokens: Tensor, attention: Tensor | None) -> Tensor:
    """Which tokens there are, their numbers spread over buckets, and how many."""
    counted = torch.ones_like(tokens) if attention is None else attention
    places = (tokens.long() * _MULTIPLIER % 2**32) * BUCKETS // 2**32
    counts = torch.zeros(len(tokens), BUCKETS).scatter_add_(1, places, counted.float())
    total = counts.sum(1, keepdim=True)
    return torch.cat([(counts / total.clamp_min(1)).sqrt(), (1 + total).log() / 4], 1)
