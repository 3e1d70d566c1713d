"""How task vectors lie to each other: angles, opposite signs, and tasks that go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONG, AGAINST = 2.5, -0.15
"""What the task vectors of experts that were trained alike never are: up to 1.4 times as long as
the usual one, and with cosines above −0.02."""


@dataclass(frozen=True)
class Pairs:
    """What is summed over some tensors for every pair of K task vectors; float64 [K, K] each.

    Attributes
    ----------
    products
        ⟨τᵢ, τⱼ⟩.
    opposed, both
        On how many numbers the two move in opposite directions, and how many both move at all. Of
        unrelated vectors half of them are opposed (the sign conflict of TIES, arXiv 2306.01708).
    """

    products: Tensor
    opposed: Tensor
    both: Tensor

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(
            self.products + other.products, self.opposed + other.opposed, self.both + other.both
        )

    @property
    def cosine(self) -> Tensor:
        """Of the angle between each two, 0 where one does not move; [K, K]."""
        return cosine(self.products)

    @property
    def sign_conflict(self) -> Tensor:
        """Share of the numbers that both move on which they are opposed; [K, K]."""
        return self.opposed / self.both.clamp_min(1)


def pairs_of(blocks: Iterable[Tensor], tasks: int) -> Pairs:
    """Compare K task vectors that come in blocks [K, c]; each is read once, where it is."""
    products, same, both = torch.zeros(3, tasks, tasks, dtype=torch.float64)
    for block in blocks:
        products += (block @ block.T).cpu()
        signs = block.sign()
        same += (signs @ signs.T).cpu()
        both += (signs.abs() @ signs.abs().T).cpu()
    return Pairs(products, (both - same) / 2, both)


def cosine(products: Tensor) -> Tensor:
    """The cosines that belong to inner products [K, K]; 0 where a vector is zero."""
    sizes = products.diagonal().clamp_min(0).sqrt()
    whole = sizes[:, None] * sizes
    return torch.where(whole > 0, products / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0.0)


def groups(affinity: Tensor, least: float = 0.0) -> list[list[int]]:
    """Tasks that go together: groups whose mean affinity is above ``least``, by average linkage.

    ``affinity`` [K, K] is symmetric; its diagonal is not looked at. The largest group comes first.
    """
    found: list[list[int]] = [[task] for task in range(len(affinity))]
    between = affinity.clone()
    while len(found) > 1:
        closest = between.clone().fill_diagonal_(-torch.inf)
        first, second = sorted(divmod(int(closest.argmax()), len(found)))
        if float(closest[first, second]) <= least:
            break
        found[first] += found.pop(second)
        left = [n for n in range(len(between)) if n != second]
        between = between[left][:, left]
        for n, other in enumerate(found):
            if n != first:
                between[first, n] = between[n, first] = _mean(affinity, found[first], other)
    return _ordered(found)


def halves(affinity: Tensor) -> list[list[int]]:
    """Two groups of tasks with little affinity between them, by normalised cuts.

    Of all cuts along the second eigenvector of the normalised Laplacian, that with the smallest
    cut/assoc(A) + cut/assoc(B) (Shi and Malik, 2000): a group of one task has to be far from all.
    ``affinity`` [K, K] is symmetric, with K at least 2; what is below 0 counts as none.
    """
    weights = affinity.clamp_min(0).double()
    degrees = weights.sum(1).clamp_min(1e-12)
    scaled = weights / (degrees[:, None] * degrees).sqrt()
    order = (torch.linalg.eigh(scaled).eigenvectors[:, -2] / degrees.sqrt()).argsort()

    def cost(count: int) -> float:
        one, other = order[:count], order[count:]
        cut = weights[one][:, other].sum()
        return float(cut / degrees[one].sum() + cut / degrees[other].sum())

    best = min(range(1, len(order)), key=cost)
    return _ordered([order[:best].tolist(), order[best:].tolist()])


def outliers(products: Tensor) -> dict[int, str]:
    """Task vectors that are far from the others, and in what way; from ⟨τᵢ, τⱼ⟩ [K, K].

    Those that are ``LONG`` times as long as the median of the others, or longer, and those that
    point ``AGAINST`` most of the others: by the median of the cosines. None of fewer than three.
    """
    count = len(products)
    if count < 3:
        return {}
    sizes, angles = products.diagonal().clamp_min(0).sqrt(), cosine(products)
    found = {}
    for task in range(count):
        others = [other for other in range(count) if other != task]
        times = float(sizes[task] / sizes[others].median().clamp_min(1e-12))
        angle = float(angles[task, others].median())
        said = []
        if times >= LONG:
            said.append(f"its task vector is {times:.1f} times as long as the usual one")
        if angle <= AGAINST:
            said.append(f"it points against the others (median cosine {angle:.2f})")
        if said:
            found[task] = " and ".join(said)
    return found


def _ordered(found: Sequence[list[int]]) -> list[list[int]]:
    """The largest group first."""
    return sorted((sorted(group) for group in found), key=lambda group: (-len(group), group))


def _mean(affinity: Tensor, one: Sequence[int], other: Sequence[int]) -> float:
    return float(affinity[list(one)][:, list(other)].mean())


def cka(one: Tensor, other: Tensor) -> float | None:
    """How alike two models represent N examples, by features [N, d] and [N, d']: linear CKA.

    1 if they differ by a rotation and a factor (Kornblith et al., arXiv 1905.00414). HSIC is
    estimated without bias (Song et al., 2012), so that few examples do not look alike: unrelated
    features have 0, whatever N. None for fewer than four examples, or features that are constant.
    """
    if len(one) < 4:
        return None
    grams = [_hollow(of) for of in (one, other)]
    between, ours, theirs = _hsic(*grams), _hsic(grams[0], grams[0]), _hsic(grams[1], grams[1])
    return between / (ours * theirs) ** 0.5 if min(ours, theirs) > 0 else None


def _hollow(features: Tensor) -> Tensor:
    """Products of examples [N, N], without those of one with itself."""
    centred = features.double() - features.double().mean(0)
    return (centred @ centred.T).fill_diagonal_(0)


def _hsic(one: Tensor, other: Tensor) -> float:
    n = len(one)
    whole = float(one.sum() * other.sum()) / ((n - 1) * (n - 2))
    mixed = 2 * float(one.sum(0) @ other.sum(0)) / (n - 2)
    return (float((one * other).sum()) + whole - mixed) / (n * (n - 3))
