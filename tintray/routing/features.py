"""What tells the inputs of one task from those of another: cheap statistics of an example.

They are read from a model's inputs, not from its layers. Layers learn to forget what sets data
sets apart (how edges fall off, how ink lies on its paper); docs/routing.md has the comparison.
So they cost little beside a forward pass, and they stay as they are however the backbone changes.

All shares are taken to their square root, as the Hellinger distance has it: that keeps what is
rare from drowning in what is frequent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_LEVELS, _SPAN = 64, 2.7  # processors scale pixels to somewhere within ±2.7
_CURVED = torch.tensor([-0.9, -0.5, 0.0, 0.5, 0.9])
_HUNDREDTHS = (torch.arange(240) - 119.5) / 100
_FINE, _BRIGHT = (torch.bucketize(_HUNDREDTHS, e, out_int32=True) for e in (_SIGNED, _CURVED))
_TO_COARSE = torch.bucketize(torch.cat([_SIGNED, _SIGNED[-1:] + 1]), _COARSE, out_int32=True)
"""The coarse place of each fine one: coarse edges are among the fine ones."""
_GRID = 16


def form_of(inputs: Mapping[str, Tensor]) -> Form | None:
    """Which statistics a model's inputs have; None if they are neither images nor tokens."""
    pixels, tokens = inputs.get("pixel_values"), inputs.get("input_ids")
    if pixels is not None and pixels.ndim == 4 and min(pixels.shape[-2:]) >= 3:
        return "images-1"
    return "tokens-1" if tokens is not None and tokens.ndim == 2 else None


def features(inputs: Mapping[str, Tensor]) -> Tensor:
    """Statistics [N, D], float32, of each of N examples, as a processor or tokenizer gives them.

    They are computed where the inputs are.

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
    fine = [_placed(edge, _FINE) for edge in edges]
    x, y, bend = (_looked_up(_TO_COARSE, places) for places in fine[:3])
    coarse, of_edges = len(_COARSE) + 1, len(_SIGNED) + 1
    levels = ((gray + _SPAN) * (_LEVELS / (2 * _SPAN))).clamp(0, _LEVELS - 1).int()
    counted = [
        (levels, _LEVELS),
        *((places, of_edges) for places in fine),
        (x[:, :-1] * coarse + y[:, :, :-1], coarse**2),
        (x[:, :, 1:] * coarse + x[:, :, :-1], coarse**2),
        (y[:, 1:] * coarse + y[:, :-1], coarse**2),
        (_placed(inner, _BRIGHT) * coarse + bend, (len(_CURVED) + 1) * coarse),
    ]
    found = [_shares(counted), *_layout(gray)]
    if pixels.shape[1] > 2:
        hues = _placed(pixels[:, :2] - pixels[:, 1:3], _FINE)
        chroma = functional.adaptive_avg_pool2d(pixels[:, :2] - gray[:, None], 4)
        found += [_shares([(hues[:, n], of_edges) for n in range(2)]), chroma.flatten(1) / 2]
    return torch.cat(found, 1)


def _placed(values: Tensor, table: Tensor) -> Tensor:
    """Between which edges values lie, looked up by hundredths: a fifth of the time of a search."""
    return _looked_up(table, ((values * 100).ceil_().clamp_(-119, 120) + 119).int())


def _looked_up(table: Tensor, places: Tensor) -> Tensor:
    """``table[places]``, in a quarter of its time."""
    return table.to(places.device).index_select(0, places.flatten()).view(places.shape)


def _shares(counted: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Square roots of how often each place occurs in an example: of places [N, …] below widths."""
    widths = torch.tensor([width for _, width in counted])
    total, starts = int(widths.sum()), (widths.cumsum(0) - widths).tolist()
    rows, each = len(counted[0][0]), [places[0].numel() for places, _ in counted]
    device = counted[0][0].device
    first = torch.arange(rows, dtype=torch.int32, device=device)[:, None] * total
    flat = torch.empty(rows, sum(each), dtype=torch.int32, device=device)
    parts = torch.split(flat, each, 1)
    for part, (places, _), start in zip(parts, counted, starts, strict=True):
        torch.add(places.flatten(1), first + start, out=part)
    found = torch.bincount(flat.flatten(), minlength=rows * total)
    sizes = torch.tensor(each).clamp_min(1).repeat_interleave(widths)
    return (found.view(rows, total) / sizes.to(device)).sqrt_()


def _layout(gray: Tensor) -> list[Tensor]:
    """How light, how varied and how extreme rows and columns are, on a coarse grid."""
    plane = gray[:, None]
    mean = functional.adaptive_avg_pool2d(plane, _GRID)[:, 0] / 4
    rows = [part for axis in (1, 2) for part in (2 * mean.mean(axis), _deviation(mean, axis))]
    for axis in (1, 2):
        rows.append(functional.adaptive_max_pool1d(gray.amax(axis), _GRID) / 4)
        rows.append(-functional.adaptive_max_pool1d(-gray.amin(axis), _GRID) / 4)
    return rows


def _deviation(values: Tensor, axis: int) -> Tensor:
    """``values.std(axis)``, in a third of its time for few values."""
    centred = values - values.mean(axis, keepdim=True)
    return centred.square_().sum(axis).div_(values.shape[axis] - 1).sqrt_()


def _of_tokens(tokens: Tensor, attention: Tensor | None) -> Tensor:
    """Which tokens there are, their numbers spread over buckets, and how many."""
    counted = torch.ones_like(tokens) if attention is None else attention
    places = (tokens.long() * _MULTIPLIER % 2**32) * BUCKETS // 2**32
    counts = torch.zeros(len(tokens), BUCKETS, device=tokens.device)
    counts.scatter_add_(1, places, counted.float())
    total = counts.sum(1, keepdim=True)
    return torch.cat([(counts / total.clamp_min(1)).sqrt(), (1 + total).log() / 4], 1)
