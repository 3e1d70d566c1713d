"""Tint layers, and the fused model that runs the batches of many tasks as one.

Every layer but the tint site and the head is shared, so the batches of all tasks in a group are
concatenated and pass the shared layers as *one* batch. At the tint site and at the head they part:
each task's stretch of the batch meets that task's own tensors, and the results are joined again.
Back-propagation then gives Σₜ ∂Lₜ/∂θ without further work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tintray.models.calling import answer
from tintray.models.norms import (
    BatchSegments,
    Statistics,
    replace_norms,
    store_collected,
)
from tintray.models.structure import is_linear, skeleton
from tintray.numerics.choices import Precision
from tintray.numerics.layout import Layout, Theta
from tintray.numerics.low_rank import balanced
from tintray.numerics.precision import computing
from tintray.numerics.sites import HEAD
from tintray.numerics.stacked_batch import StackedBatch
from tintray.pools.pool import Pool, joined
from tintray.references.observing import HeadInputs, head_of
from tintray.tinting.checkpointing import checkpoint_layers
from tintray.tinting.per_task import (
    PerTaskLowRankEmbedding,
    PerTaskLowRankLinear,
    PerTaskModule,
    PerTaskProducts,
)
from tintray.vectors.task_vectors import DOWN, UP


@dataclass
class TintLayer:
    """What one task owns: its tint layer and its head, initialised from its expert.

    Attributes
    ----------
    tensors
        Every private tensor by its full name in the model.
    rates
        The highest learning rate of those among them that the fit moves; a head that is no tint
        site stays its expert's.
    """

    task: str
    tensors: dict[str, Tensor]
    rates: dict[str, float]

    @classmethod
    def of_expert(
        cls,
        task: str,
        tensors: Mapping[str, Tensor],
        rate: Callable[[str], float | None],
        device: str = "cpu",
    ) -> TintLayer:
        """Private copies, on ``device``, of an expert's tensors; those with a ``rate`` learn."""
        floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        rates = {name: found for name in floats if (found := rate(name)) is not None}
        own = {
            name: nn.Parameter(tensor.to(device, copy=True), requires_grad=True)
            if name in rates
            else tensor.to(device, copy=True)
            for name, tensor in tensors.items()
        }
        return cls(task, own, rates)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained tensors, in order."""
        return [
            tensor for name in self.rates if isinstance(tensor := self.tensors[name], nn.Parameter)
        ]

    def by_rate(self) -> dict[float, list[str]]:
        """The names of the trained tensors, by their highest learning rate."""
        found: dict[float, list[str]] = {}
        for name, rate in self.rates.items():
            found.setdefault(rate, []).append(name)
        return found

    @torch.no_grad()
    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        """Take these numbers over, by name."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    def count(self, site: Sequence[str] | None = None) -> int:
        """How many numbers the task owns, all or those below ``site``."""
        below = "" if site is None else tuple(f"{path}." for path in site)
        return sum(t.numel() for name, t in self.tensors.items() if name.startswith(below))


def low_rank_factors(
    task_vectors: Mapping[str, Tensor], ranks: Mapping[str, int]
) -> dict[str, Tensor]:
    """A low-rank tint's start: the best product of its rank for each weight's task vector.

    From τ [m, n], or a table [1, m, n], by name: ``<name>.low_rank.up`` [m, r] and
    ``<name>.low_rank.down`` [r, n], whose product is τ's truncated singular value decomposition;
    the singular values are shared out evenly, so that both factors learn alike.
    """
    factors: dict[str, Tensor] = {}
    for name, vector in task_vectors.items():
        matrix = vector.float().flatten(0, -2)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        product = balanced(left, values, right, ranks[name])
        factors[name + UP], factors[name + DOWN] = (
            product.up.contiguous(),
            product.down.contiguous(),
        )
    return factors


def without_learning(layer: TintLayer) -> dict[str, Tensor]:
    """What a task owns of a merge that needs no learning, as far as a fit would change it.

    Tensors of its own are its expert's, as they are in the layer by now; products add nothing.
    """
    start = {name: layer.tensors[name].detach().clone() for name in layer.rates}
    ups = (name for name in layer.tensors if name.endswith(UP))
    return start | {name: torch.zeros_like(layer.tensors[name]) for name in ups}


def with_low_rank(shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A task's tensors under their models' names: low-rank products added to what is shared."""
    tensors = {name: t for name, t in {**shared, **own}.items() if not name.endswith((UP, DOWN))}
    for name in own:
        if name.endswith(UP):
            weight = name.removesuffix(UP)
            product = own[name] @ own[weight + DOWN]
            tensors[weight] = shared[weight] + product.view_as(shared[weight])
    return tensors


def pooled(output: Any) -> Tensor:
    """One feature vector per example, float32 [N, d], of what a module answers or is given.

    Of a sequence [N, S, d] it is the first position beside the mean over all; of a map
    [N, C, H, W] the mean over its pixels.
    """
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    tensor = tensor.float()
    if tensor.ndim == 3:
        return torch.cat([tensor[:, 0], tensor.mean(1)], -1)
    return tensor.flatten(2).mean(2) if tensor.ndim > 3 else tensor


def capture(module: nn.Module, path: str, head: str, captured: list[Tensor]) -> RemovableHandle:
    """Append ``pooled`` features to ``captured`` whenever ``module`` runs.

    ``path`` names the submodule whose output they are; ``"head"`` is what that of the path
    ``head`` is given.
    """
    if path == HEAD:
        target = module.get_submodule(head)
        return target.register_forward_pre_hook(lambda _, given: captured.append(pooled(given)))
    target = module.get_submodule(path)
    return target.register_forward_hook(lambda _, __, output: captured.append(pooled(output)))


def _install_capturing_hooks(module: nn.Module) -> None:
    """Have a transformers model hook its layers now, while they are of the classes it knows.

    A decoder of maps asks for the features of every stage. transformers captures them by hooks on
    the layers, which it finds by their class when it is first asked. A model that has been run has
    them already, if not all under its own name; each layer would be captured twice.
    """
    from transformers import PreTrainedModel
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    installed = any(hasattr(part, "_output_capturing_hooks_installed") for part in module.modules())
    if isinstance(module, PreTrainedModel) and not installed:
        maybe_install_capturing_hooks(module)


class FusedModel:
    """One model whose shared tensors are a flat θ and whose private modules part by task.

    Parameters
    ----------
    module
        A model of the experts' class; of its weights those that tasks own are copied, and even
        they stand for nothing afterwards.
    layout
        Where the shared tensors live in θ.
    private
        Paths of the modules that every task owns: the tint site and the head.
    low_rank
        Names of shared tensors that every task adds a low-rank product to.
    device
        Where it computes. θ, the gradient and the tint layers that it is given lie there; batches
        are moved there, and answers stay.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        private: Sequence[str],
        low_rank: Iterable[str] = (),
        device: str = "cpu",
    ) -> None:
        self._device = torch.device(device)
        self._module = skeleton(module, [slot.name for slot in layout.slots], device)
        _install_capturing_hooks(self._module)
        self._captured: list[Tensor] = []
        self._head = head_of(self._module)
        self._layout = layout
        self._segments = BatchSegments()
        self._precision: Precision = "float32"
        self.pad_token = getattr(getattr(module, "config", None), "pad_token_id", None) or 0
        self._norms = replace_norms(self._module, private, self._segments)
        for path in private:
            self._replace(
                path, PerTaskModule(path, self._module.get_submodule(path), self._segments)
            )
        self._add_products(frozenset(low_rank))
        self._shared = [self._module.get_parameter(slot.name) for slot in layout.slots]
        self._unbound = [parameter.data for parameter in self._shared]

    def answer_stacked(self) -> None:
        """Stack tasks where they part, if that gives the same but for rounding; not for a fit."""
        self._segments.stacked = True

    def checkpoint(self) -> int:
        """Compute layers' activations again for the backward pass; how many layers do so.

        A model without layers that can be told keeps its activations as ever.
        """
        return checkpoint_layers(self._module, self._as_now)

    def _as_now(self) -> Callable[[], AbstractContextManager[None]]:
        """Gives blocks in which a part of the model is run as it is being run now."""
        return partial(self._as, dict(vars(self._segments)), self._precision)

    @contextmanager
    def _as(self, segments: Mapping[str, Any], precision: Precision) -> Iterator[None]:
        now = dict(vars(self._segments))
        vars(self._segments).update(segments)
        try:
            with computing(precision, self._module, self._device.type):
                yield
        finally:
            vars(self._segments).update(now)

    def use_statistics(self, statistics: Statistics) -> None:
        """Normalise by the statistics of each batch, as at first, or by the running ones."""
        self._segments.statistics = statistics

    @torch.no_grad()
    def estimate(self, layer: TintLayer, pool: Pool, batch_size: int = 64) -> None:
        """Estimate a task's statistics of batch normalisation anew, under the θ that is bound.

        The mean over the batches of the pool of their means and variances, each batch normalised
        by its own on the way: what training in one epoch without forgetting would leave.
        """
        if not self._norms:
            return
        self.use_statistics("collect")
        for start in range(0, len(pool), batch_size):
            rest = len(pool) - start
            size = rest if rest < batch_size + 2 else batch_size  # no last batch of one example
            self.forward([pool.batch(slice(start, start + size))], [layer])
            if size == rest:
                break
        store_collected(self._segments, layer)
        self.use_statistics("batch")

    def capture(self, path: str) -> None:
        """Keep, from now on, the features at ``path`` (see ``capture``) of each forward pass."""
        capture(self._module, path, self._head, self._captured)

    def hooked(self, inputs: HeadInputs) -> AbstractContextManager[HeadInputs]:
        """Collect what the head is given in this block."""
        return inputs.hooked(self._module, self._head)

    def features(self) -> list[Tensor]:
        """The features of the last forward pass, of each task's batch in order: [bₜ, d]."""
        # A module inside a tint layer runs once per task, any other once for all.
        parts: Sequence[Tensor] = torch.split(torch.cat(self._captured), self._segments.sizes)
        return list(parts)

    def _replace(self, path: str, new: nn.Module) -> None:
        if not path:
            self._module = new
            return
        parent, _, name = path.rpartition(".")
        setattr(self._module.get_submodule(parent), name, new)

    def _add_products(self, low_rank: Collection[str]) -> None:
        """Part every module that holds one of these tensors, under whatever name: tied ones too."""
        known = {id(self._module.get_parameter(name)): name for name in low_rank}
        parted: dict[int, nn.Module] = {}  # T5 has one table at three paths
        for path, owner in list(self._module.named_modules(remove_duplicate=False)):
            names = {
                name: known[id(tensor)]
                for name, tensor in owner._parameters.items()
                if id(tensor) in known
            }
            if not names:
                continue
            if id(owner) not in parted:
                parted[id(owner)] = self._parted(path, owner, names)
            self._replace(path, parted[id(owner)])

    def _parted(self, path: str, owner: nn.Module, names: Mapping[str, str]) -> nn.Module:
        first = next(iter(names.values()))
        if is_linear(owner):
            return PerTaskLowRankLinear(first, owner, self._segments)
        if type(owner).forward is nn.Embedding.forward:
            return PerTaskLowRankEmbedding(first, cast(nn.Embedding, owner), self._segments)
        return PerTaskProducts(path, owner, self._segments, names)

    def bind(self, theta: Theta, gradient: Tensor | None) -> None:
        """Use θ as the shared tensors, and add ∂L/∂θ into ``gradient`` [P]; nothing is copied.

        Parameters
        ----------
        theta
            One vector [P], or consecutive pieces of it that cut no tensor.
        gradient
            Without it the shared tensors are constants.
        """
        views = self._layout.views(theta)
        for parameter, slot in zip(self._shared, self._layout.slots, strict=True):
            parameter.data = views[slot.name]
            parameter.requires_grad_(gradient is not None)
            stretch = slice(slot.start, slot.stop)
            parameter.grad = None if gradient is None else gradient[stretch].view(slot.shape)

    def release(self) -> None:
        """Let go of the θ that is bound, and of its gradient, until ``bind`` comes again."""
        for parameter, nothing in zip(self._shared, self._unbound, strict=True):
            parameter.data, parameter.grad = nothing, None
            parameter.requires_grad_(False)

    def forward(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        layers: Sequence[TintLayer],
        precision: Precision = "float32",
    ) -> list[Tensor]:
        """Answers to each task's batch, in order: logits [bₜ, max classes of the tasks given].

        The caller cuts each to its task's own size; see ``PerTaskModule`` and ``tasks.matched``.
        """
        inputs = joined([dict(batch) for batch in batches], self.pad_token)
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        sizes = [len(next(iter(batch.values()))) for batch in batches]
        return self._answers(inputs, sizes, layers, precision)

    @property
    def parts_norms(self) -> bool:
        """Whether there are batch normalisations, whose statistics are each task's own."""
        return bool(self._norms)

    def answer_together(
        self, inputs: Mapping[str, Tensor], batch: StackedBatch, precision: Precision = "float32"
    ) -> Tensor:
        """Answers [N, …] to a batch of which all that tasks do apart is done at once.

        ``inputs`` lie where the model computes. Nothing waits for the device.
        """
        self._segments.together = batch
        try:
            return self._computed(inputs, precision)
        finally:
            self._segments.together = None

    def _answers(
        self,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[int],
        layers: Sequence[TintLayer],
        precision: Precision,
    ) -> list[Tensor]:
        """Outputs of each task's stretch of a joined batch."""
        self._segments.sizes, self._segments.layers = list(sizes), list(layers)
        self._captured.clear()
        return list(torch.split(self._computed(inputs, precision), list(sizes)))

    def _computed(self, inputs: Mapping[str, Tensor], precision: Precision) -> Tensor:
        self._precision = precision
        with computing(precision, self._module, self._device.type):
            output = answer(self._module, inputs)
        # Losses and metrics are float32 at least, whatever the passes computed in.
        return output.float() if output.dtype == torch.bfloat16 else output
