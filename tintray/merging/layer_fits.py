"""The closed forms of FeatCal: one layer, fitted to what the experts' layers answer.

Each task says its part of a layer's equations; parts add up, and their sum is solved. Source:
github.com/egangu/featcal at 18c68b6, ``solver.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from tintray.models.structure import is_norm, is_transposed

_TINY = 1e-8

Terms = Mapping[str, Tensor]


class LayerFit(ABC):
    """One module as something that can be fitted: of an expert, or of the merge.

    Equations are in float64, which GPUs for graphics are slow at; what is summed over examples is
    in float32. All is computed where the tensors are that are given.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    @abstractmethod
    def rows(self, given: Tensor) -> Tensor:
        """What the layer's parameters multiply, of its input: [batch, rows, n]."""

    @abstractmethod
    def sums(self, ours: Tensor, theirs: Tensor, mix: float) -> dict[str, Tensor]:
        """Sums over rows that the merge's layer and the expert's are given, [N, n] each."""

    @abstractmethod
    def part(self, means: Terms) -> dict[str, Tensor]:
        """An expert's part of the equations, from the means over its rows."""

    @abstractmethod
    def solved(self, parts: Terms, anchors: Terms, ridge: float) -> dict[str, Tensor]:
        """``weight``, and ``bias`` where there is one, from the sum of all parts."""

    @property
    def _has_bias(self) -> bool:
        return getattr(self._module, "bias", None) is not None


class LinearFit(LayerFit):
    """A linear layer, or a convolution as the linear map of what its kernel sees.

    With C = Xsᵀ Xs / N of each task, its norm |C|, Xt = α Xe + (1 − α) Xs and anchors A, a:

        (Σ C/|C| + η I) Wᵀ = Σ (Xsᵀ Xt / N |C|) Wₖᵀ + η Aᵀ
        (Σ 1/|C| + η) b = Σ (bₖ + Wₖ x̄t − W x̄s)/|C| + η a
    """

    def rows(self, given: Tensor) -> Tensor:
        """[batch, rows, n]."""
        module = self._module
        if isinstance(module, nn.Conv2d):
            sizes: Any = (module.kernel_size, module.dilation, module.padding, module.stride)
            return functional.unfold(given, *sizes).mT
        return given.reshape(len(given), -1, given.shape[-1])

    def sums(self, ours: Tensor, theirs: Tensor, mix: float) -> dict[str, Tensor]:
        """Products and sums of the merge's inputs Xs and of the mixture Xt."""
        mixed = mix * theirs + (1 - mix) * ours
        products = {"gram": ours.mT @ ours, "cross": ours.mT @ mixed}
        return products | {"given": ours.sum(0), "mixed": mixed.sum(0)}

    def part(self, means: Terms) -> dict[str, Tensor]:
        """C/|C|, and what else stands at 1/|C|."""
        weight = self._matrix(self._module.weight.double())
        share = 1 / means["gram"].norm().clamp_min(_TINY).reshape(1)
        part = {"gram": share * means["gram"], "wanted": share * (means["cross"] @ weight.T)}
        if self._has_bias:
            wanted = self._module.bias.double() + weight @ means["mixed"]
            part |= {"share": share, "given": share * means["given"], "bias": share * wanted}
        return part

    def solved(self, parts: Terms, anchors: Terms, ridge: float) -> dict[str, Tensor]:
        """W and b."""
        gram = parts["gram"]
        system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        wanted = parts["wanted"] + ridge * self._matrix(anchors["weight"]).T
        weight = torch.cholesky_solve(wanted, torch.linalg.cholesky(system)).T
        found = {"weight": weight.T if is_transposed(self._module) else weight}
        if "bias" in anchors:
            left = parts["bias"] - weight @ parts["given"]
            found["bias"] = (left + ridge * anchors["bias"]) / (parts["share"] + ridge)
        return found

    def _matrix(self, weight: Tensor) -> Tensor:
        """A weight as [m, n]."""
        return weight.T if is_transposed(self._module) else weight.flatten(1)


class NormFit(LayerFit):
    """A layer normalisation: its weight γ and its bias β, for normalised inputs z.

    They minimise Σ mean ‖z γ + β − z γₖ − βₖ‖² + η ‖(γ, β) − anchor‖².
    """

    def rows(self, given: Tensor) -> Tensor:
        """z, [batch, rows, d]: what the weight is multiplied by, however the class computes it."""
        none = {name: torch.zeros_like(p) for name, p in self._module.named_parameters()}
        one = {**none, "weight": torch.ones_like(none["weight"])}
        found: Tensor = functional_call(self._module, one, given)
        found = found - functional_call(self._module, none, given)  # Gemma's is z (1 + γ)
        channels = getattr(self._module, "data_format", "") == "channels_first"
        if channels or isinstance(self._module, nn.GroupNorm):
            found = found.movedim(1, -1)
        return found.reshape(len(found), -1, none["weight"].numel())

    def sums(self, ours: Tensor, theirs: Tensor, mix: float) -> dict[str, Tensor]:
        """Of the merge's inputs alone."""
        return {"energy": ours.square().sum(0), "given": ours.sum(0)}

    def part(self, means: Terms) -> dict[str, Tensor]:
        """Both sides of the equations."""
        energy, given = means["energy"], means["given"]
        weight = self._module.weight.double().flatten()
        part = {"energy": energy, "weight": energy * weight}
        if self._has_bias:
            bias = self._module.bias.double().flatten()
            part["weight"] += given * bias
            part |= {"given": given, "bias": given * weight + bias, "share": energy.new_ones(1)}
        return part

    def solved(self, parts: Terms, anchors: Terms, ridge: float) -> dict[str, Tensor]:
        """γ and β, by Cramer's rule for each channel."""
        energy = parts["energy"] + ridge
        weight = parts["weight"] + ridge * anchors["weight"].flatten()
        if "bias" not in anchors:
            return {"weight": weight / energy}
        share, given = parts["share"] + ridge, parts["given"]
        bias = parts["bias"] + ridge * anchors["bias"].flatten()
        size = (energy * share - given.square()).clamp_min(_TINY)
        return {
            "weight": (share * weight - given * bias) / size,
            "bias": (energy * bias - given * weight) / size,
        }


def fit_of(module: nn.Module) -> LayerFit | None:
    """How a module is fitted; None where it is not, such as a depthwise convolution."""
    if isinstance(module, nn.Linear) or is_transposed(module):
        return LinearFit(module)
    if isinstance(module, nn.Conv2d):
        zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return LinearFit(module) if zeros and module.groups == 1 else None
    plain = is_norm(module) and not isinstance(module, _NormBase)  # those of batches keep counts
    return NormFit(module) if plain and getattr(module, "weight", None) is not None else None
