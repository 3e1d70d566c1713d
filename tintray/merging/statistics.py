"""What is measured once about an expert, for every method that asks for it.

* ``fisher``, of an expert on its pool: the diagonal of its Fisher information
* ``gram``, of an expert on its pool: XᵀX / N of the inputs of every linear layer
* ``svd``, of a task vector: U, S, V of every matrix
* ``svd_sum``, of all task vectors of a merge: U, S, V of every matrix of their sum

Pools are not labelled: the Fisher information takes the expectation over the expert's own
predictions, as its definition does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tintray.merging.algorithms.spectral import decompose, pack
from tintray.models.hooks import seeing_inputs
from tintray.pools.feeding import batches_on
from tintray.pools.pool import Pool

OF_EXPERTS = ("fisher", "gram")
FISHER_EXAMPLES = 128
GRAM_EXAMPLES = 512


def fisher_diagonal(
    expert: nn.Module, pool: Pool, names: Sequence[str], device: str = "cpu"
) -> dict[str, Tensor]:
    """E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ)² of the named parameters, scaled to mean 1.

    Over the first ``FISHER_EXAMPLES`` of the pool, one at a time; the inner expectation is exact.
    The expert is on ``device``, and what is found in memory.
    Source: Matena and Raffel, arXiv 2111.09832, eq. 2.
    """
    parameters = [expert.get_parameter(name) for name in names]
    for parameter in parameters:
        parameter.requires_grad_(True)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches_on(pool[:FISHER_EXAMPLES], device, 1):
        logs = expert(**batch).logits.float().log_softmax(-1)[0]
        chances = logs.detach().exp()
        likely = (chances > 1e-4).nonzero().flatten().tolist()  # the rest weighs next to nothing
        for step, answer in enumerate(likely):
            gradients = torch.autograd.grad(
                logs[answer], parameters, retain_graph=step + 1 < len(likely)
            )
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_.addcmul_(gradient, gradient, value=float(chances[answer]))
    size = sum(found.numel() for found in total)
    mean = sum(float(found.sum(dtype=torch.float64)) for found in total) / size
    scaled = (found.to("cpu") / max(mean, 1e-38) for found in total)
    return dict(zip(names, scaled, strict=True))


@torch.inference_mode()
def input_grams(
    expert: nn.Module, pool: Pool, names: Sequence[str], device: str = "cpu"
) -> dict[str, Tensor]:
    """XᵀX / N [in, in] of the inputs of every linear layer whose weight is named.

    Over the first ``GRAM_EXAMPLES`` of the pool, every token a row of X. The expert is on
    ``device``, and what is found in memory. Source: RegMean, arXiv 2212.09849, section 3.
    """
    wanted = {name.removesuffix(".weight"): name for name in names if name.endswith(".weight")}
    layers = {
        wanted[path]: module
        for path, module in expert.named_modules()
        if isinstance(module, nn.Linear) and path in wanted
    }
    widths = {name: layer.in_features for name, layer in layers.items()}
    sums = {name: torch.zeros(width, width, device=device) for name, width in widths.items()}
    counts = dict.fromkeys(layers, 0)

    def add(name: str, given: Tensor) -> None:
        rows = given.reshape(-1, given.shape[-1]).float()
        sums[name].addmm_(rows.T, rows)
        counts[name] += len(rows)

    with seeing_inputs(layers, add):
        for batch in batches_on(pool[:GRAM_EXAMPLES], device):
            expert(**batch)
    return {name: found.to("cpu") / max(counts[name], 1) for name, found in sums.items()}


def decompositions(
    vectors: Sequence[Mapping[str, Tensor]], device: str = "cpu"
) -> dict[str, Tensor]:
    """Packed singular value decompositions of the matrices of Σ τₖ, or of one τ, in memory."""
    return {
        name: pack(
            *decompose(torch.stack([vector[name].to(device) for vector in vectors]).sum(0))
        ).to("cpu")
        for name, tensor in vectors[0].items()
        if tensor.ndim == 2
    }
