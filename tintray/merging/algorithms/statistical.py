"""Methods on measurements of each expert over its pool: Fisher merging and RegMean."""

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
    scaled = (off_diagonal * grams + (1 - off_diagonal) * diagonals).double()
    # A ridge in numerator and denominator: inputs that never occur get the plain mean.
    ridge = 1e-6 * scaled.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-12)
    scaled += ridge * torch.eye(scaled.shape[-1], dtype=scaled.dtype)
    factor = torch.linalg.cholesky(scaled.sum(0))
    weighted = layer.vectors.double() @ scaled
    solved = [torch.cholesky_solve(product.T, factor).T for product in weighted]
    return torch.stack(solved).float()
