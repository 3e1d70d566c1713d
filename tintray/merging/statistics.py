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
from tintray.pools.pool import Pool

OF_EXPERTS = ("fisher", "gram")
FISHER_EXAMPLES = 128
GRAM_EXAMPLES = 512


def fisher_diagonal(expert: nn.Module, pool: Pool, names: Sequence[str]) -> dict[str, Tensor]:
    """E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ)² of the named parameters, scaled to mean 1.

    Over the first ``FISHER_EXAMPLES`` of the pool, one at a time; the inner expectation is exact.
    Source: Matena and Raffel, arXiv 2111.09832, eq. 2.
    """
    parameters = [expert.get_parameter(name) for name in names]
    for parameter in parameters:
        parameter.requires_grad_(True)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for index in range(min(FISHER_EXAMPLES, len(pool))):
        logs = expert(**pool.batch(slice(index, index + 1))).logits.float().log_softmax(-1)[0]
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
    return {n: found / max(mean, 1e-38) for n, found in zip(names, total, strict=True)}


@torch.inference_mode()
def input_grams(expert: nn.Module, pool: Pool, names: Sequence[str]) -> dict[str, Tensor]:
    """XᵀX / N [in, in] of the inputs of every linear layer whose weight is named.

    Over the first ``GRAM_EXAMPLES`` of the pool, every token a row of X. Source: RegMean,
    arXiv 2212.09849, section 3.
    """
    wanted = {name.removesuffix(".weight"): name for name in names if name.endswith(".weight")}
    layers = {
        wanted[path]: module
        for path, module in expert.named_modules()
        if isinstance(module, nn.Linear) and path in wanted
    }
    sums = {n: torch.zeros(layer.in_features, layer.in_features) for n, layer in layers.items()}
    counts = dict.fromkeys(layers, 0)

    def add(name: str, given: Tensor) -> None:
        rows = given.reshape(-1, given.shape[-1]).float()
        sums[name].addmm_(rows.T, rows)
        counts[name] += len(rows)

    with seeing_inputs(layers, add):
        for batch in pool.batches(GRAM_EXAMPLES):
            expert(**batch)
    return {name: found / max(counts[name], 1) for name, found in sums.items()}


def decompositions(vectors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Packed singular value decompositions of the matrices of Σ τₖ, or of one τ."""
    return {
        name: pack(*decompose(torch.stack([vector[name] for vector in vectors]).sum(0)))
        for name, tensor in vectors[0].items()
        if tensor.ndim == 2
    }
