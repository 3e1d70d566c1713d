"""How a model splits for a tint site: what all tasks share, and what each keeps for itself."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from statistics import median_low

from torch import nn

from tintray.errors import SpecError
from tintray.models.structure import HEAD, backbone_names, head_modules, is_linear, resolve_site
from tintray.numerics.choices import Granularity
from tintray.numerics.layout import Layout, build_layout
from tintray.numerics.schedules import BLOCK_LR, BLOCK_LR_OF_WIDTH, HEAD_LR


@dataclass(frozen=True)
class Partition:
    """A base, split into what tasks share and the modules that each owns: tint site and head.

    A low-rank tint leaves the site shared: then a task owns the head alone.
    """

    module: nn.Module
    site: tuple[str, ...]  # paths of the tinted modules
    private: tuple[str, ...]  # paths of all modules that a task owns
    layout: Layout  # the shared tensors, and the layer units that they form
    low_rank: tuple[str, ...] = ()  # weights at the site that each task adds a product to


def partition(
    base: nn.Module,
    site: str,
    granularity: Granularity = "tensor",
    rank: int | None = None,
    *,
    learned: bool = True,
) -> Partition:
    """Resolve a tint site on a base, and lay out what is left to share.

    A tinted module's tensors are not in the layout: no task would use a merged version of them.
    With a ``rank`` they are: every task adds a product of that rank to each linear weight there.
    Where nothing is ``learned``, a head that is tied to the embeddings is merged with them, and
    tasks own nothing.

    Raises
    ------
    SpecError
        If the model has no such site (see ``resolve_site``), or one that has no low-rank form.
    """
    heads = head_modules(base)
    paths = () if site == HEAD and not (learned or heads) else resolve_site(base, site)
    low_rank = () if rank is None else _linear_weights(base, site, paths, heads)
    private = heads if low_rank else tuple(dict.fromkeys(paths + heads))
    below = tuple(f"{path}." for path in private)
    shapes = {
        name: base.get_parameter(name).shape
        for name in backbone_names(base)
        if not name.startswith(below)
    }
    return Partition(base, paths, private, build_layout(shapes, granularity), low_rank)


def default_tint_lr(base: nn.Module, site: str, rank: int | None = None) -> float:
    """The learning rate of tint layers, where a job names none.

    With Adam, the best rate of a weight matrix falls as one over its width (Yang et al. 2022,
    Tensor Programs V); wide modules therefore learn more slowly. Heads, normalisation layers and
    low-rank products do not go by width.
    """
    if site == HEAD:
        return HEAD_LR
    width = None if rank is not None else _width(base, resolve_site(base, site))
    return BLOCK_LR if width is None else min(BLOCK_LR, BLOCK_LR_OF_WIDTH / width)


def _width(base: nn.Module, paths: tuple[str, ...]) -> int | None:
    """The narrower side of the matrices below these paths, their median; None if there is none."""
    sides = [
        min(tensor.shape[0], prod(tensor.shape[1:]))
        for path in paths
        for tensor in base.get_submodule(path).parameters()
        if tensor.dim() > 1
    ]
    return median_low(sides) if sides else None


def _linear_weights(
    base: nn.Module, site: str, paths: tuple[str, ...], heads: tuple[str, ...]
) -> tuple[str, ...]:
    """Weights of the linear layers below a site, in the order of the model."""
    if set(paths) & set(heads):
        raise SpecError(
            f"tint.rank: the tint site '{site}' is the head, of which tasks share nothing that a "
            "low-rank product could be added to; name a module of the backbone, or leave out rank"
        )
    below = tuple(f"{path}." for path in paths)
    weights = tuple(
        f"{name}.weight"
        for name, child in base.named_modules()
        if is_linear(child) and f"{name}.".startswith(below)
    )
    if not weights:
        raise SpecError(
            f"tint.rank: there is no linear layer at the tint site '{site}'; expected a module "
            "with linear layers, such as a block, or leave out rank for a full copy"
        )
    return weights
