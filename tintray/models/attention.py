"""Which numbers of a model belong to which attention head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tintray.models.structure import is_linear, is_transposed

_MOST_LAYERS = 6  # of one attention; what has more holds several
_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head")


@dataclass(frozen=True)
class HeadSplit:
    """How one tensor is cut into heads: along which dimension, and where several lie behind one
    another (queries, keys and values of one projection), into how many parts first."""

    block: str  # the attention that it is of
    dim: int
    heads: int
    parts: int = 1

    def squares(self, tensor: Tensor) -> list[float]:
        """The sum of the squares of each head's numbers."""
        moved = tensor.movedim(self.dim, 0).reshape(self.parts, self.heads, -1).double()
        found: list[float] = moved.square().sum((0, 2)).tolist()
        return found


def attention_heads(module: nn.Module) -> dict[str, HeadSplit]:
    """Every tensor of a model that is cut into attention heads, by its name.

    An attention is the outermost module whose class is called so and that has a few linear layers:
    the last of them brings the heads together, the others make them. What tells no number of heads,
    or one that fits no tensor, is left out.
    """
    found: dict[str, HeadSplit] = {}
    taken: set[str] = set()
    for path, own in module.named_modules():  # parents come before their children
        if "Attention" not in type(own).__name__ or not (count := _count(own)):
            continue
        parts = own.named_modules(prefix=path)
        linear = {name: child for name, child in parts if is_linear(child)}
        if 2 <= len(linear) <= _MOST_LAYERS and not taken & linear.keys():
            taken |= linear.keys()
            found |= _splits(path, linear, count)
    return found


def _count(attention: nn.Module) -> int | None:
    """How many heads an attention has, as it or a part of it says."""
    for part in attention.modules():
        for holder in (part, getattr(part, "config", None)):
            for name in _COUNTS:
                if isinstance(count := getattr(holder, name, None), int) and count > 0:
                    return count
    return None


def _splits(path: str, linear: dict[str, nn.Module], heads: int) -> dict[str, HeadSplit]:
    *makers, (last, joins) = linear.items()
    width = _sizes(joins)[1] // heads
    found = {}
    for name, layer in makers:
        out = _sizes(layer)[0]
        parts = 3 if out == 3 * heads * width else 1
        if not width or out % (parts * width):
            continue
        own = out // (parts * width)  # fewer where several queries share their keys
        if own == heads:
            dim = 1 if is_transposed(layer) else 0
            found[f"{name}.weight"] = HeadSplit(path, dim, heads, parts)
            found[f"{name}.bias"] = HeadSplit(path, 0, heads, parts)
    if found:
        dim = 0 if is_transposed(joins) else 1
        found[f"{last}.weight"] = HeadSplit(path, dim, heads)
    return found


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """What a linear layer gives, and what it takes."""
    first, second = layer.get_parameter("weight").shape
    return (second, first) if is_transposed(layer) else (first, second)
