"""δ: what all tasks add to the merged backbone together, learned beside the coefficients.

θ = θ₀ + Σₖ λₖ τₖ + δ. Coefficients can only scale what the experts know; where their task vectors
conflict, no Λ serves all of them. δ [P] is free: it moves along Σₜ ∂Lₜ/∂θ, which every round has
anyway, so that it costs no pass through the model, only its optimiser. The merge stays one backbone
of the same size. Fits of few rounds leave it small; it starts at zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tintray.numerics.choices import Optimiser
from tintray.numerics.layout import Layout, Slot
from tintray.numerics.precision import resolve
from tintray.numerics.snapshots import Snapshots
from tintray.numerics.stacked_adam import BETAS, EPSILON

_BESIDE_MUON = 0.25
_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NAMES = ("values", "first", "second")
_TABLES = re.compile(r"embed|position|token|wte|wpe", re.IGNORECASE)


class Correction:
    """δ over a layout [P], with its optimiser; all starts at zero.

    ``adam`` (Kingma and Ba, arXiv 1412.6980) is elementwise. ``muon`` (Jordan et al. 2024, as torch
    has it) moves every matrix by its momentum made orthogonal, in bfloat16, or in float32 where the
    processor has no bfloat16, which takes 25 times as long there. Vectors and embeddings still move
    by Adam, at a quarter of the rate, since Adam's first steps are as large as its rate and Muon's
    a fifth of it. No tensor's step depends on another's, so that shards that hold some of the
    tensors move them as one that holds all would.

    Parameters
    ----------
    layout
        The tensors that δ is made of.
    """

    def __init__(self, layout: Layout, optimiser: Optimiser = "adam", device: str = "cpu") -> None:
        self._tensors = {name: torch.zeros(layout.numel, device=device) for name in _NAMES}
        self.snapshots = Snapshots({"values": self.values})
        self._steps, self._share = 0, _BESIDE_MUON if optimiser == "muon" else 1.0
        self._matrices = [s for s in layout.slots if optimiser == "muon" and _is_matrix(s)]
        self._elementwise = _between(self._matrices, layout.numel)
        self._dtype = torch.bfloat16 if resolve("auto", device) == "bfloat16" else torch.float32
        self._together = _Together(
            self._tensors, self._matrices, self._elementwise, device, self._dtype
        )

    @property
    def values(self) -> Tensor:
        """δ; treat as read-only."""
        return self._tensors["values"]

    def update(self, gradient: Tensor, learning_rate: float) -> None:
        """Take one step along ∂L/∂θ [P]."""
        self._steps += 1
        if self._together.suits:
            self._together.update(gradient, learning_rate, self._share, self._steps)
            return
        for stretch in self._elementwise:
            state = (self._tensors[name][stretch] for name in _NAMES)
            adam(state, gradient[stretch], self._share * learning_rate, self._steps)
        for slot in self._matrices:
            value, momentum, moved_by = (
                _as_matrix(of, slot)
                for of in (self._tensors["values"], self._tensors["first"], gradient)
            )
            muon(value, momentum, moved_by, learning_rate, self._dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed job needs; ``steps`` is one number, the others are [P]."""
        own = {name: tensor.clone() for name, tensor in self._tensors.items()}
        steps = {"steps": torch.tensor([float(self._steps)])}
        return own | steps | self.snapshots.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what ``state_dict`` returned."""
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])
        self._steps = int(state["steps"].item())
        self.snapshots.load_state_dict(state)


class _Together:
    """The same step for a GPU: in few kernels, however many tensors there are.

    Matrices of one shape are one array [B, m, n]; what moves by Adam is gathered first.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        matrices: list[Slot],
        elementwise: list[slice],
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self.suits = torch.device(device).type == "cuda"
        self._state, self._matrices, self._dtype = state, matrices, dtype
        stretches = [torch.arange(s.start, s.stop) for s in elementwise]
        self._apart = torch.cat(stretches).to(device) if self.suits and stretches else None

    def update(self, gradient: Tensor, learning_rate: float, share: float, steps: int) -> None:
        """One step along ∂L/∂θ [P]."""
        if self._apart is not None:
            own = [self._state[name].index_select(0, self._apart) for name in _NAMES]
            adam(own, gradient.index_select(0, self._apart), share * learning_rate, steps)
            for name, moved in zip(_NAMES, own, strict=True):
                self._state[name].index_copy_(0, self._apart, moved)
        if self._matrices:
            values, momenta, gradients = (
                [_as_matrix(of, slot) for slot in self._matrices]
                for of in (self._state["values"], self._state["first"], gradient)
            )
            stacked_muon(values, momenta, gradients, learning_rate, self._dtype)


def adam(state: Iterable[Tensor], gradient: Tensor, learning_rate: float, steps: int) -> None:
    """Adam's step number ``steps``: values and two moments, in place."""
    values, first, second = state
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    bias_first, bias_second = (1 - beta**steps for beta in BETAS)
    size = (second / bias_second).sqrt_().add_(EPSILON)
    values.addcdiv_(first, size, value=-learning_rate / bias_first)


@torch.no_grad()
def muon(
    value: Tensor, momentum: Tensor, gradient: Tensor, learning_rate: float, dtype: torch.dtype
) -> None:
    """Muon's step of one matrix as torch has it (``match_rms_adamw``, no decay), in place."""
    momentum.lerp_(gradient, 1 - _MOMENTUM)
    step = orthogonal(gradient.lerp(momentum, _MOMENTUM), dtype)
    value.add_(step, alpha=-_rate(learning_rate, value.shape))


@torch.no_grad()
def stacked_muon(
    values: list[Tensor],
    momenta: list[Tensor],
    gradients: list[Tensor],
    learning_rate: float,
    dtype: torch.dtype,
) -> None:
    """The same of many matrices, those of one shape at once."""
    torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
    nesterov = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
    by_shape: dict[torch.Size, list[int]] = {}
    for number, matrix in enumerate(values):
        by_shape.setdefault(matrix.shape, []).append(number)
    for shape, numbers in by_shape.items():
        steps = orthogonal(torch.stack([nesterov[n] for n in numbers]), dtype).float()
        rate = _rate(learning_rate, shape)
        torch._foreach_add_([values[n] for n in numbers], list(steps), alpha=-rate)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Each of [m, n] or [B, m, n] with its singular values near 1: five Newton-Schulz steps."""
    wide, tall = matrices.to(dtype), matrices.shape[-2] > matrices.shape[-1]
    wide = wide.mT if tall else wide
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    product = torch.addmm if wide.ndim == 2 else torch.baddbmm
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        gram = wide @ wide.mT
        gram = product(gram, gram, gram, beta=b, alpha=c)
        wide = product(wide, gram, wide, beta=a)
    return wide.mT if tall else wide


def _rate(learning_rate: float, shape: torch.Size) -> float:
    """That of a matrix, by which its step is as large as one of Adam's."""
    return learning_rate * (0.2 * math.sqrt(max(shape)))


def _is_matrix(slot: Slot) -> bool:
    """Whether a tensor multiplies what it is given; embeddings are looked up or added."""
    return len(slot.shape) > 1 and not _TABLES.search(slot.name)


def _as_matrix(flat: Tensor, slot: Slot) -> Tensor:
    return flat[slot.start : slot.stop].view(slot.shape[0], -1)


def _between(slots: list[Slot], numel: int) -> list[slice]:
    """What is left of [0, numel) beside some tensors, in order."""
    edges = [0, *(edge for slot in slots for edge in (slot.start, slot.stop)), numel]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [slice(start, stop) for start, stop in pairs if stop > start]
