"""The method's parts, set up over a few models without any job: base, experts, T, task groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny_zoo import TASKS, TinyZoo
from tintray.checkpoints.model_folder import open_model_folder
from tintray.data.source import DataSource
from tintray.models.loading import load_base, load_expert
from tintray.models.norms import norm_buffers
from tintray.models.structure import private_state
from tintray.numerics.choices import Granularity
from tintray.numerics.layout import Layout
from tintray.numerics.sites import TintSite
from tintray.pools.pool import Pool
from tintray.pools.preparing import open_pool
from tintray.tasks.classes import CLASSIFICATION
from tintray.tinting.partition import partition
from tintray.tinting.self_labels import predict
from tintray.tinting.step import StepSettings, TaskGroup, TaskState
from tintray.tinting.tint_layers import FusedModel, TintLayer, low_rank_factors
from tintray.vectors.task_vectors import TaskVectors

SETTINGS = StepSettings(seed=3, batch_size=6, micro_batch=64, labels="soft", filter="none")


def dense_task_vectors(
    layout: Layout, tasks: Sequence[str], base: Tensor, matrix: Tensor, device: str = "cpu"
) -> TaskVectors:
    """T from one float32 array [K, P] in memory; it is copied to ``device``."""
    return TaskVectors.gather(
        layout, tasks, base, lambda slot: [*matrix[:, slot.start : slot.stop]], device=device
    )


@dataclass
class Workbench:
    """Base, experts and pools of some tasks, split for tint sites."""

    base: nn.Module
    experts: dict[str, nn.Module]
    pools: dict[str, Pool]
    site: str = "head"
    rank: int | None = None
    sites: tuple[TintSite, ...] = ()  # in the place of site and rank
    granularity: Granularity = "tensor"
    labels: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.labels = {n: predict(e, self.pools[n]).clone() for n, e in self.experts.items()}
        sites = self.sites or (TintSite(self.site, self.rank),)
        split = partition(self.base, sites, self.granularity)
        self.rate = split.rate
        self.paths, self.private, self.layout = split.site, split.private, split.layout
        self.low_rank = split.low_rank

    @property
    def vectors(self) -> TaskVectors:
        """θ₀ and T over the layout."""
        return self.vectors_on("cpu")

    def vectors_on(self, device: str) -> TaskVectors:
        """The same on a device."""
        base = self._flat(self.base)
        matrix = torch.stack([self._flat(expert) - base for expert in self.experts.values()])
        return dense_task_vectors(self.layout, tuple(self.experts), base, matrix, device)

    def _flat(self, module: nn.Module) -> Tensor:
        return self.layout.flatten({n: p.detach() for n, p in module.named_parameters()})

    def layers(self, device: str = "cpu") -> list[TintLayer]:
        """A fresh tint layer per task."""
        return [
            TintLayer.of_expert(name, self._state(expert), self.rate, device)
            for name, expert in self.experts.items()
        ]

    def _state(self, expert: nn.Module) -> dict[str, Tensor]:
        state = private_state(expert, self.private) | norm_buffers(expert)
        pairs = {n: (expert.get_parameter(n), self.base.get_parameter(n)) for n in self.low_rank}
        vectors = {name: (one - base).detach() for name, (one, base) in pairs.items()}
        return state | low_rank_factors(vectors, self.low_rank)

    def group(
        self, settings: StepSettings = SETTINGS, only: str | None = None, device: str = "cpu"
    ) -> TaskGroup:
        """One task group of all tasks, or of one, at its beginning."""
        states = [
            TaskState(layer.task, layer, self.pools[layer.task], self.labels[layer.task])
            for layer in self.layers(device)
            if only in (None, layer.task)
        ]
        template = next(iter(self.experts.values()))
        fused = FusedModel(template, self.layout, self.private, self.low_rank, device=device)
        gradient = torch.zeros(self.layout.numel, device=device)
        return TaskGroup(states, fused, gradient, settings)

    def uniform(self, value: float) -> Tensor:
        """Λ [K, L] with one value everywhere."""
        return torch.full((len(self.experts), len(self.layout.units)), value)


def tiny_workbench(zoo: TinyZoo, tasks: tuple[str, ...] = TASKS, **options: Any) -> Workbench:
    """A workbench over the tiny zoo."""
    data = {name: zoo.folder / f"{name}.npz" for name in tasks}
    return workbench(zoo.folder, data, **options)


def workbench(
    folder: Path, data: Mapping[str, Path], examples: int | None = None, **options: Any
) -> Workbench:
    """A workbench over the experts in ``folder``, each with (the start of) its data file."""
    folders = {name: open_model_folder(folder / name) for name in data}
    base = load_base(open_model_folder(folder / "base"), like=next(iter(folders.values())))
    experts = {name: load_expert(of) for name, of in folders.items()}
    pools = {
        name: open_pool(DataSource(str(data[name])), of, CLASSIFICATION, name, name)[:examples]
        for name, of in folders.items()
    }
    return Workbench(base, experts, pools, **options)
