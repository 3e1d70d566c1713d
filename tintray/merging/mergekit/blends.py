"""Merging methods as mergekit defines them, by the names that it gives them.

Written from mergekit's documentation and from what version 0.1.5 computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tintray.merging.mergekit import consensus, spheres
from tintray.merging.mergekit.blend import Blend, Each, Inputs, Setting, Shared


def _linear(given: Inputs, shared: Shared, each: Each) -> Tensor:
    weights = torch.tensor([own["weight"] for own in each], dtype=given.precise)
    total = torch.zeros(given.shape, dtype=given.precise)
    for tensor, weight in zip(given.tensors, weights, strict=True):
        total += tensor.to(given.precise) * weight
    if shared["normalize"]:
        total /= weights.sum()
    return total.to(given.dtype)


def _passthrough(given: Inputs, _: Shared, each: Each) -> Tensor:
    scale = each[0]["scale"]
    return given.tensors[0] if scale is None else given.tensors[0] * scale


def _nearswap(given: Inputs, shared: Shared, _: Each) -> Tensor:
    (other,) = given.others
    distance = (given.origin - other).abs().clamp(min=1e-6)
    share: Tensor = (shared["t"] / distance).clamp(0, 1)
    return share * other + (1 - share) * given.origin


def _arcee_fusion(given: Inputs, _: Shared, __: Each) -> Tensor:
    """Take over the entries whose change is an outlier, weighed by its row's divergence."""
    (other,) = given.others
    if other.numel() == 0:
        return other
    new, old = (tensor.softmax(-1) + 1e-8 for tensor in (other, given.origin))
    divergence = (new * (new / old).log()).sum(-1, keepdim=True)
    change = other - given.origin
    importance = change.abs() * divergence
    order = importance.reshape(-1).sort().values
    low, middle, high = (
        order[(torch.tensor(share) * (len(order) - 1)).long()] for share in (0.25, 0.5, 0.75)
    )
    return given.origin + change * (importance >= middle + 1.5 * (high - low)).to(change.dtype)


def _summed(
    name: str, sparse: consensus.Sparsify | None, *, elect: bool, mean: bool, rescale: bool
) -> Blend:
    """One of the methods that add up sparsified task vectors."""
    extra = {
        consensus.between: Setting("gamma", float, "expert", 0.01, 0, 1),
        consensus.by_rank: Setting("epsilon", float, "expert", 0.15, 0, 1),
    }
    sparsified = (
        Setting("density", float, "expert", 1.0, 0, 1),
        Setting("rescale", bool, "all", rescale),
        *([extra[sparse]] if sparse in extra else []),
    )
    settings = (
        Setting("weight", float, "expert"),
        Setting("normalize", bool, "all", mean),
        Setting("lambda", float, "all", 1.0),
        Setting("int8_mask", bool, "all", False),  # mergekit's memory, not its result
        *([] if sparse is None else sparsified),
    )

    def merge(given: Inputs, shared: Shared, each: Each) -> Tensor:
        return consensus.summed(given, shared, each, sparse, elect=elect)

    work = (2, 3) if sparse is None else (6, 3)
    check = _della_range if sparse is consensus.by_rank else None
    return Blend(name, merge, settings, workspace=work, piecewise=sparse is None, check=check)


def _della_range(own: Mapping[str, Any]) -> str | None:
    density, epsilon = own["density"], own["epsilon"]
    if density in (0, 1) or (density - epsilon > 0 and density + epsilon < 1):
        return None
    return f"density ± epsilon between 0 and 1, found {density:g} ± {epsilon:g}"


_ALL = (
    Blend(
        "linear",
        _linear,
        (Setting("weight", float, "input"), Setting("normalize", bool, "all", True)),
        base="input",
        workspace=(2, 0),
        piecewise=True,
    ),
    _summed("task_arithmetic", None, elect=False, mean=False, rescale=False),
    _summed("ties", consensus.largest, elect=True, mean=True, rescale=False),
    _summed("dare_ties", consensus.at_random, elect=True, mean=False, rescale=True),
    _summed("dare_linear", consensus.at_random, elect=False, mean=False, rescale=True),
    _summed("breadcrumbs", consensus.between, elect=False, mean=False, rescale=False),
    _summed("breadcrumbs_ties", consensus.between, elect=True, mean=False, rescale=False),
    _summed("della", consensus.by_rank, elect=True, mean=True, rescale=True),
    _summed("della_linear", consensus.by_rank, elect=False, mean=False, rescale=True),
    Blend("slerp", spheres.slerp, (Setting("t", float),), least=2, most=2),
    Blend(
        "nuslerp",
        spheres.nuslerp,
        (
            Setting("weight", float, "expert"),
            Setting("nuslerp_row_wise", bool, "all", False),
            Setting("nuslerp_flatten", bool, "all", True),
        ),
        base="optional",
        least=2,
        most=3,
    ),
    Blend(
        "multislerp",
        spheres.multislerp,
        (
            Setting("weight", float, "expert"),
            Setting("normalize_weights", bool, "all", True),
            Setting("eps", float, "all", 1e-8, 0),
        ),
        base="optional",
        workspace=(6, 2),
    ),
    Blend(
        "karcher",
        spheres.karcher,
        (Setting("max_iter", int, "all", 10, 0), Setting("tol", float, "all", 1e-5, 0)),
        base="input",
    ),
    Blend(
        "sce",
        consensus.sce,
        (Setting("select_topk", float, "all", 1.0, 0, 1), Setting("int8_mask", bool, "all", False)),
        workspace=(6, 3),
    ),
    Blend(
        "model_stock",
        consensus.model_stock,
        (Setting("filter_wise", bool, "all", False),),
        least=3,
        workspace=(4, 3),
    ),
    Blend("nearswap", _nearswap, (Setting("t", float),), least=2, most=2, piecewise=True),
    Blend("arcee_fusion", _arcee_fusion, least=2, most=2, workspace=(10, 2)),
    Blend(
        "passthrough",
        _passthrough,
        (Setting("scale", float, "input", None),),
        base="input",
        most=1,
        piecewise=True,
    ),
)

BLENDS: Mapping[str, Blend] = {blend.name: blend for blend in _ALL}
"""All blends by the name that mergekit gives them."""
