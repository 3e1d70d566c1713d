"""Methods on measurements of the experts over their pools: Fisher merging, RegMean, FeatCal."""

from __future__ import annotations

import torch
from torch import Tensor

from tintray.merging.declaration import Layer, Parameter, method


@method(
    "fisher",
    summary="Every coordinate as the mean of the experts, weighted by how much each needs it.",
    source="Matena and Raffel, arXiv 2111.09832, eq. 3",
    parameters=[Parameter("floor", 1e-6, 0, 1, "added to every Fisher value, relative to the mean",
                          open_low=True)],
    tuned=False,
    needs=("fisher",),
    elementwise=True,
)  # fmt: skip
def fisher(layer: Layer, floor: float) -> Tensor:
    """D = Fₖ τₖ / Σ Fⱼ, for diagonals F of the Fisher information, each at mean 1 over its model.

    The experts' diagonals come scaled to mean 1: only their shape says what a task needs, their
    size follows from how sure the expert is.
    """
    weights = layer.statistics["fisher"] + floor
    return layer.vectors * weights / weights.sum(0)


@method(
    "regmean",
    summary="Each linear layer as the least-squares fit to all experts' outputs.",
    source="Jin et al., RegMean, arXiv 2212.09849, eq. 4",
    parameters=[
        Parameter("off_diagonal", 0.9, 0, 1, "what off-diagonal products of inputs are scaled by")
    ],
    tuned=False,
    needs=("gram",),
    workspace=3,
)
def regmean(layer: Layer, off_diagonal: float) -> Tensor:
    """Dₖ = τₖ Gₖ (Σ Gⱼ)⁻¹ for the Grams G = XᵀX of a layer's inputs; the mean elsewhere."""
    grams = layer.statistics.get("gram")
    if grams is None or layer.base.ndim != 2:
        return layer.vectors / len(layer.vectors)
    diagonals = torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))
    # In float64, which GPUs for graphics do at 1/32 to 1/64 of their speed, as Grams are nearly
    # singular.
    scaled = (off_diagonal * grams + (1 - off_diagonal) * diagonals).double()
    # A ridge in numerator and denominator: inputs that never occur get the plain mean.
    ridge = 1e-6 * scaled.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-12)
    scaled += ridge * torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    factor = torch.linalg.cholesky(scaled.sum(0))
    weighted = layer.vectors.double() @ scaled
    solved = [torch.cholesky_solve(product.T, factor).T for product in weighted]
    return torch.stack(solved).float()


@method(
    "featcal",
    summary="Layer by layer, the fit to the experts' outputs on the merge's own inputs.",
    source="FeatCal, github.com/egangu/featcal at 18c68b6",
    parameters=[
        Parameter("examples", 256, 1, 100_000, "examples of each pool", whole=True),
        Parameter("start", 0.3, 0, 10, "scale of the task vectors' sum before layers are fitted"),
        Parameter("ridge", 0.05, 0, 10, "how strongly a layer is drawn to its anchor",
                  open_low=True),
        Parameter("anchor", 2.2, 0, 10, "where the anchor is: 0 the base, 1 the start"),
        Parameter("mix", 0.25, 0, 1, "share of the expert's own inputs in what is fitted"),
    ],
    tuned=False,
    needs=("featcal",),
    elementwise=True,
    expert_at=None,
)  # fmt: skip
def featcal(
    layer: Layer, examples: int, start: float, ridge: float, anchor: float, mix: float
) -> Tensor:
    """Σ D is what the fit has moved; each task has its own vector, and the rest is shared equally.

    The fit itself needs the whole model, layer after layer: ``tintray.merging.featcal``.
    """
    moved = layer.statistics["featcal"][0] - layer.vectors.sum(0)
    return layer.vectors + moved / len(layer.vectors)
