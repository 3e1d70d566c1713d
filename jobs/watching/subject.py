"""A task of a published merge beside what it came from: its expert, the base, part of its pool."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import CheckpointError
from tintray.jobs.engine.sources import cache_folder, local_folder
from tintray.jobs.runs.evaluate import check_same, job_of, open_published_expert, read_pool
from tintray.jobs.runs.pipeline import device_here
from tintray.models.loading import load_base
from tintray.models.structure import backbone_names, copy_on, skeleton
from tintray.numerics.randomness import stream
from tintray.pools import sequences
from tintray.pools.pool import Pool
from tintray.published.manifest import ModelEntry, TaskEntry
from tintray.published.merge import Merge
from tintray.tasks.kind import Kind
from tintray.tasks.registry import find_kind


@dataclass(frozen=True)
class Subject:
    """A task of a merge with its expert, its base and part of its pool."""

    merge: Merge
    entry: TaskEntry
    expert: nn.Module
    base: nn.Module
    pool: Pool
    device: str  # where models are run on the pool; they lie in memory

    @classmethod
    def of(cls, merge: Merge, task: str, examples: int, base: nn.Module | None = None) -> Subject:
        """Open all that a task came from; raises as ``explain``.

        ``base`` is that of another task of the merge, which was opened before.
        """
        entry = merge.task(task)
        folder, expert = open_published_expert(merge, entry)
        _check_same_model(folder, entry.expert, f"the expert of task '{task}'")
        base = _base_of(merge, folder) if base is None else base
        source, pool = read_pool(merge, entry, entry.pool)
        check_same(task, source, pool, entry.pool)
        random = stream(0, task, "explain")
        rows = torch.randperm(len(pool), generator=random)[:examples].sort().values
        device = device_here(job_of(merge))
        pool = sequences.completed(copy_on(expert, device), pool.narrowed(rows), device)
        return cls(merge, entry, expert, base, pool, device)

    @property
    def kind(self) -> Kind:
        """What the task predicts."""
        return find_kind(self.entry.kind)

    @cached_property
    def tint(self) -> dict[str, Tensor]:
        """What the task owns."""
        return self.merge.tint(self.entry.name)

    @cached_property
    def statistics(self) -> set[str]:
        """Names of what was estimated and not learned: a model's buffers."""
        return {name for name, _ in self.expert.named_buffers()}

    @cached_property
    def shared(self) -> dict[str, Tensor]:
        """The tensors of the base that are not below a head: heads of a base stand for nothing."""
        return {name: self.base.get_parameter(name).detach() for name in backbone_names(self.base)}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The three that are compared: the merge without the tint, with it, and the expert."""
        untinted = skeleton(self.expert)
        statistics = {name: self.tint[name] for name in self.statistics & self.tint.keys()}
        untinted.load_state_dict({**self.merge.backbone, **statistics}, strict=False)
        tinted = self.merge.for_task(self.entry.name)
        return {"backbone": untinted, "tinted": tinted, "expert": self.expert}


def _base_of(merge: Merge, like: ModelFolder) -> nn.Module:
    """The base of a merge, as the model of an expert has it."""
    published, role = merge.manifest.base, f"the base of {merge.url}"
    folder = local_folder(published.source, cache_folder())
    base = open_model_folder(folder, role=role, factory=merge.factory)
    _check_same_model(base, published, role)
    return load_base(base, like=like, role=role)


def _check_same_model(found: ModelFolder, published: ModelEntry, what: str) -> None:
    """Refuse another model than the one that a merge was made from."""
    if (digest := found.digest()) != published.sha256:
        raise CheckpointError(
            f"{what}: {published.source} is another model than when the merge was made "
            f"(sha256 {digest[:12]}…, expected {published.sha256[:12]}…); put that back"
        )
