"""How a model splits for its tint sites: what all tasks share, and what each keeps for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from statistics import median_low

from torch import nn

from tintray.errors import SpecError
from tintray.models.prompts import find_prompt
from tintray.models.structure import backbone_names, head_modules, is_linear, resolve_site
from tintray.numerics.choices import Granularity
from tintray.numerics.layout import Layout, build_layout
from tintray.numerics.schedules import BLOCK_LR, BLOCK_LR_OF_WIDTH, HEAD_LR, PROMPT_LR
from tintray.numerics.sites import HEAD, PROMPT, TintSite

PROMPT_RANK = 8
"""The rank of a prompt where a job names none."""


@dataclass(frozen=True)
class Partition:
    """A base, split into what tasks share and what each owns: the tint sites, and the head.

    Attributes
    ----------
    site
        Paths of the modules at which tasks part.
    private
        Paths of all modules that a task owns whole: heads always.
    layout
        The shared tensors, and the layer units that they form.
    low_rank
        Shared tensors that each task adds a product to, with its rank.
    rates
        Highest learning rate by what names of trained tensors begin with.
    """

    module: nn.Module
    site: tuple[str, ...]
    private: tuple[str, ...]
    layout: Layout
    low_rank: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)

    def rate(self, name: str) -> float | None:
        """The highest learning rate of a tensor that a task owns; None of one that stays."""
        return next((r for start, r in self.rates.items() if name.startswith(start)), None)


def partition(
    base: nn.Module,
    sites: Sequence[TintSite],
    granularity: Granularity = "tensor",
    *,
    learned: bool = True,
    tint_lr: float | None = None,
) -> Partition:
    """Resolve tint sites on a base, and lay out what is left to share.

    A tinted module's tensors are not in the layout: no task would use a merged version of them.
    At a site of a ``rank`` they are: every task adds a product of that rank to each linear weight
    there. Where nothing is ``learned``, a head that is tied to the embeddings is merged with them,
    and tasks own nothing. ``tint_lr`` is the rate of sites that name none.

    Raises
    ------
    SpecError
        If the model has no such site (see ``resolve_site``), or one that has no low-rank form, or
        two of them overlap.
    """
    heads = head_modules(base)
    whole: dict[str, float] = {}
    low_rank: dict[str, tuple[int, float]] = {}
    places: list[str] = []
    for site in sites:
        rate = site.lr or tint_lr
        if site.at == HEAD and not (learned or heads):
            continue
        if site.at == PROMPT:
            prompt = find_prompt(base)
            paths, names = prompt.norms, prompt.tables
        else:
            paths = resolve_site(base, site.at)
            names = () if site.rank is None else _linear_weights(base, site.at, paths, heads)
        rate = rate or default_tint_lr(base, site)
        rank = site.rank or PROMPT_RANK
        _check_apart(site, [*whole, *low_rank], [*(f"{p}." for p in paths if not names), *names])
        if names:
            low_rank |= dict.fromkeys(names, (rank, rate))
            places += paths or [name.rpartition(".")[0] for name in names]
        else:
            whole |= {f"{path}.": rate for path in paths}
            places += paths
    rates = whole | {f"{name}.low_rank.": rate for name, (_, rate) in low_rank.items()}
    private = tuple(dict.fromkeys([path.removesuffix(".") for path in whole] + list(heads)))
    below = tuple(f"{path}." for path in private)
    shapes = {
        name: base.get_parameter(name).shape
        for name in backbone_names(base)
        if not name.startswith(below)
    }
    return Partition(
        base,
        tuple(dict.fromkeys(places)),
        private,
        build_layout(shapes, granularity),
        {name: rank for name, (rank, _) in low_rank.items()},
        rates if learned else {},
    )


def _check_apart(site: TintSite, taken: Sequence[str], new: Sequence[str]) -> None:
    """Refuse a site that lies in another one, or around it: a task would own a tensor twice."""
    for one in new:
        for other in taken:
            if one.startswith(other) or other.startswith(one):
                raise SpecError(
                    f"tint.sites: '{site.at}' shares '{max(one, other, key=len).rstrip('.')}' with "
                    "another site; expected sites that do not overlap"
                )


def default_tint_lr(base: nn.Module, site: TintSite) -> float:
    """The learning rate of tint layers at a site, where a job names none.

    With Adam, the best rate of a weight matrix falls as one over its width (Yang et al. 2022,
    Tensor Programs V); wide modules therefore learn more slowly. Heads, normalisation layers,
    prompts and low-rank products do not go by width.
    """
    if site.at in (HEAD, PROMPT):
        return HEAD_LR if site.at == HEAD else PROMPT_LR
    width = None if site.rank is not None else _width(base, resolve_site(base, site.at))
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
            "tint.sites: 'head' has no low-rank form, since tasks share nothing of it that a "
            "product could be added to; leave out its rank"
        )
    below = tuple(f"{path}." for path in paths)
    weights = tuple(
        f"{name}.weight"
        for name, child in base.named_modules()
        if is_linear(child) and f"{name}.".startswith(below)
    )
    if not weights:
        raise SpecError(
            f"tint.sites: there is no linear layer at '{site}'; expected a module with linear "
            "layers, such as a block, or leave out its rank for a full copy"
        )
    return weights
