"""Plain numbers of an example's input: what it looks like, whatever a model makes of it.

Answers may stay as they are while inputs change: noise on a black ground, a lens out of focus. Such
numbers notice, cost next to nothing, and a reader knows what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor

LOOKS: Final = ("brightness", "contrast", "sharpness", "length")
"""All numbers that there are."""


def looks(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers [N] of N examples by name, as a processor or tokenizer gives them; of others none.

    Of images the mean and the standard deviation of their gray pixels, and how far a pixel is from
    its neighbours' mean; of texts how many tokens they have.
    """
    pixels, tokens = inputs.get("pixel_values"), inputs.get("attention_mask")
    if pixels is not None and pixels.ndim == 4 and min(pixels.shape[-2:]) >= 3:
        gray = pixels.float().mean(1)
        middle = gray[:, 1:-1, 1:-1]
        around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
        edges = (middle - around / 4).abs()
        return {
            "brightness": gray.mean((1, 2)),
            "contrast": gray.std((1, 2)),
            "sharpness": edges.mean((1, 2)),
        }
    return {} if tokens is None or tokens.ndim != 2 else {"length": tokens.sum(1).float()}
