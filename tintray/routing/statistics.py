"""What is kept of a task so that its examples are known again: a density over features.

It comes of the task's own pool alone. So a task is added, refreshed or taken out without a look at
the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tintray.errors import IntegrityError
from tintray.routing.features import FORMS, Form

MOST = 4096
"""Examples of a pool that are looked at."""
LEAST = 8
"""Examples that a pool has to have."""
DIRECTIONS = 64
"""In which a density is fitted to how features vary together."""
EXAMPLES = 64
"""Examples that are kept, none of which the density was fitted to: they calibrate."""


_SIZES = {
    "mean": ("D",),
    "variance": ("D",),
    "directions": ("r", "D"),
    "directions.scale": ("r",),
    "examples": ("E", "D"),
    "examples.scale": ("E",),
    "count": (),
}
"""What is kept, and of which size."""


@dataclass(frozen=True)
class TaskStatistics:
    """The density of one task's features: mean, variances and a few directions; float32.

    ``mean`` [D], ``variance`` [D], ``directions`` [D, r] whose product with their transpose is the
    covariance as far as r directions hold it, ``examples`` [E, D] that were held back, ``count`` []
    how many examples it was fitted to.
    """

    mean: Tensor
    variance: Tensor
    directions: Tensor
    examples: Tensor
    count: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """The statistics of features [N, D], N at least ``LEAST``, in an order without meaning."""
        held = min(EXAMPLES, len(features) // 4)
        examples, rest = features[:held], features[held:]
        mean = rest.mean(0)
        centred = (rest - mean).double() / len(rest) ** 0.5
        wide = len(rest) < features.shape[1]
        square = centred @ centred.T if wide else centred.T @ centred
        values, vectors = torch.linalg.eigh(square)
        strongest = vectors[:, -DIRECTIONS:]
        if wide:  # the product's other factor: the same directions, for less
            strongest = centred.T @ strongest
        else:
            strongest = strongest * values[-DIRECTIONS:].clamp_min(0).sqrt()
        # Signs are free, and decided by the library: the same bytes whatever it does.
        signs = strongest.gather(0, strongest.abs().argmax(0, keepdim=True)).sign()
        return cls(
            mean,
            centred.square().sum(0).float(),
            (strongest * torch.where(signs == 0, 1.0, signs)).float(),
            examples.clone(),
            torch.tensor(len(rest)),
        )

    def tensors(self, form: Form) -> dict[str, Tensor]:
        """As tensors to keep: rows of what has many in 8 bits, each with its scale."""
        kept: dict[str, Tensor] = {"count": self.count}
        kept |= {"mean": self.mean.half(), "variance": self.variance}
        for name, rows in (("directions", self.directions.T), ("examples", self.examples)):
            scale = rows.abs().amax(1).clamp_min(1e-12) / 127
            kept[name] = (rows / scale[:, None]).round().to(torch.int8).contiguous()
            kept[f"{name}.scale"] = scale
        return {f"{form}/{name}": tensor for name, tensor in kept.items()}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], where: str) -> tuple[Form, Self]:
        """What ``tensors`` gave, and of which form; ``where`` is what messages call the file.

        Raises IntegrityError if they are no such statistics.
        """
        form = next((form for form in FORMS if f"{form}/mean" in tensors), None)
        found = {name: tensors.get(f"{form}/{name}", torch.empty(0)) for name in _SIZES}
        width, sizes = found["mean"].numel(), {"D": 0, "r": 0, "E": 0}
        for name, size in _SIZES.items():
            sizes |= dict(zip(size, found[name].shape, strict=False))
        fits = all(tuple(found[n].shape) == tuple(map(sizes.get, s)) for n, s in _SIZES.items())
        numbers = all(bool(t.isfinite().all()) for t in found.values())
        if form is None or not width or not sizes["E"] or not fits or not numbers:
            raise IntegrityError(
                f"{where} has no statistics of a pool: expected those of {' or '.join(FORMS)}, "
                f"found {', '.join(sorted(tensors)[:4]) or 'no tensor'}; `tintray add-router` "
                "computes them again"
            )
        rows = {
            name: found[name].float() * found[f"{name}.scale"].float()[:, None]
            for name in ("directions", "examples")
        }
        plain = (found["mean"].float(), found["variance"].float())
        return form, cls(*plain, rows["directions"].T, rows["examples"], found["count"])
