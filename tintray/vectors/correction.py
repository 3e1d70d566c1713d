"""δ: what all tasks add to the merged backbone together, learned beside the coefficients.

θ = θ₀ + Σₖ λₖ τₖ + δ. Coefficients can only scale what the experts know; where their task vectors
conflict, no Λ serves all of them. δ [P] is free: it moves along Σₜ ∂Lₜ/∂θ, which every round has
anyway, so that it costs no pass through the model, only its optimiser. The merge stays one backbone
of the same size. Fits of few rounds leave it small; it starts at zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tintray.numerics.choices import Optimiser
from tintray.numerics.layout import Layout, Slot
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
    has it) moves every matrix by its momentum made orthogonal; vectors and embeddings still move by
    Adam, at a quarter of the rate, since Adam's first steps are as large as its rate and Muon's a
    fifth of it. No tensor's step depends on another's, so that shards that hold some of the tensors
    move them as one that holds all would.

    Parameters
    ----------
    layout
        The tensors that δ is made of.
    """

    def __init__(self, layout: Layout, optimiser: Optimiser = "adam", device: str = "cpu") -> None:
        self._tensors = {name: torch.zeros(layout.numel, device=device) for name in _NAMES}
        self.snapshots = Snapshots({"values": self.values})
        self._steps, self._share = 0, _BESIDE_MUON if optimiser == "muon" else 1.0
        matrices = [s for s in layout.slots if optimiser == "muon" and _is_matrix(s)]
        self._elementwise = _between(matrices, layout.numel)
        self._matrices = {s.start: self._parameter(s) for s in matrices}
        self._muon: torch.optim.Optimizer | None = None
        self._together = _Together(self._tensors, matrices, self._elementwise, device)
        if matrices and not self._together.suits:
            parameters = list(self._matrices.values())
            self._muon = torch.optim.Muon(
                parameters, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            )
            for slot, parameter in zip(matrices, parameters, strict=True):
                momentum = _as_matrix(self._tensors["first"], slot)
                self._muon.state[parameter] = {"momentum_buffer": momentum}

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
        if self._muon is not None:
            for start, parameter in self._matrices.items():
                stretch = slice(start, start + parameter.numel())
                parameter.grad = gradient[stretch].view_as(parameter)
            self._muon.param_groups[0]["lr"] = learning_rate
            self._muon.step()
            self._muon.zero_grad(set_to_none=True)

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

    def _parameter(self, slot: Slot) -> nn.Parameter:
        return nn.Parameter(_as_matrix(self.values, slot), requires_grad=False)


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
    ) -> None:
        self.suits = torch.device(device).type == "cuda"
        self._state, self._matrices = state, matrices
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
            muon(values, momenta, gradients, learning_rate)


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
    values: list[Tensor], momenta: list[Tensor], gradients: list[Tensor], learning_rate: float
) -> None:
    """Muon's step as torch has it (``match_rms_adamw``, no decay), in place, by shape at once."""
    torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
    nesterov = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
    by_shape: dict[torch.Size, list[int]] = {}
    for number, matrix in enumerate(values):
        by_shape.setdefault(matrix.shape, []).append(number)
    for shape, numbers in by_shape.items():
        steps = orthogonal(torch.stack([nesterov[n] for n in numbers])).float()
        rate = learning_rate * 0.2 * max(shape) ** 0.5
        torch._foreach_add_([values[n] for n in numbers], list(steps), alpha=-rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """Each of [B, m, n] with its singular values near 1, bfloat16: five Newton-Schulz steps."""
    wide = matrices.bfloat16()
    wide = wide.mT if matrices.shape[1] > matrices.shape[2] else wide
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        gram = wide @ wide.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.baddbmm(wide, gram, wide, beta=a)
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide


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
