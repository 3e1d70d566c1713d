"""A task's expert and data, opened on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tintray.checkpoints.model_folder import TEMPLATES, ModelFolder, ZeroShot, open_model_folder
from tintray.checkpoints.processors import load_processor
from tintray.data.labels import class_names
from tintray.data.source import DataSource
from tintray.errors import CheckpointError
from tintray.jobs.engine.configs import TaskConfig
from tintray.jobs.engine.sources import cache_folder, local_data, local_folder
from tintray.models.calling import answer_space
from tintray.pools import sequences
from tintray.pools.pool import Pool
from tintray.pools.preparing import labels_of, open_pool


@dataclass(frozen=True)
class TaskFiles:
    """What a task's pools are made of: its data, prepared as ``folder`` says for its expert."""

    task: TaskConfig
    folder: ModelFolder

    @classmethod
    def open(cls, task: TaskConfig) -> TaskFiles:
        """Open a task's expert, and what it was fine-tuned from."""
        return cls(task, open_expert(task, cache_folder()))

    def pool(self) -> Pool:
        """What the fit may see; without what an expert that writes texts is still to write."""
        return self._open("pool", self.task.pool)

    def test(self, expert: nn.Module) -> Pool | None:
        """The test set, if there is one; its decoder reads the right answers."""
        task = self.task
        if task.test is None:
            return None
        pool = self._open("test", task.test)
        if not sequences.is_open(pool):
            return pool
        tokenizer = load_processor(self.folder, task.role, text=True)
        source, where = local_data(task.test, cache_folder()), f"tasks.{task.name}.test"
        config = getattr(expert, "config", None)
        return sequences.with_right_answers(pool, source, tokenizer, config, where)

    def labels(self, part: str, pool: Pool, expert: nn.Module) -> Any:
        """The labels of the pool or of the test set, as the field ``part`` names it."""
        task, source = self.task, self.task.pool if part == "pool" else self.task.test
        assert source is not None, "only what was opened has labels"
        answers = answer_space(expert, task.kind.answer_width(expert), task.role)
        local = local_data(source, cache_folder())
        return labels_of(local, task.kind, pool, answers, f"tasks.{task.name}.{part}")

    def _open(self, part: str, source: DataSource) -> Pool:
        task, cache = self.task, cache_folder()
        local, where = local_data(source, cache), f"tasks.{task.name}.{part}"
        return open_pool(local, self.folder, task.kind, task.role, where, cache)


def open_expert(task: TaskConfig, cache: Path, base: ModelFolder | None = None) -> ModelFolder:
    """A task's expert, on this machine; ``base`` saves opening that too."""
    if base is None:
        base = open_model_folder(local_folder(task.base, cache), role="base", factory=task.factory)
    folder = local_folder(task.expert, cache)
    checkpoint = open_model_folder(folder, role=task.role, base=base, factory=task.factory)
    if not checkpoint.is_tower or checkpoint.has_head:
        _check_no_texts(task, checkpoint)
        return checkpoint
    where = f"tasks.{task.name}.pool"
    known = class_names(local_data(task.pool, cache), where)
    told = task.classes or known
    if told is None:
        raise CheckpointError(
            f"tasks.{task.name}.zero_shot.classes: {task.pool.path} does not name its classes; "
            "expected a list of names, of which the head of a CLIP tower is made"
        )
    names = known if known is not None and len(known) == len(told) else told
    return checkpoint.with_classes(ZeroShot(tuple(told), task.templates), names)


def _check_no_texts(task: TaskConfig, checkpoint: ModelFolder) -> None:
    """Refuse names of classes for an expert whose head is not made of them."""
    if task.classes is None and task.templates == TEMPLATES:
        return
    kind = (checkpoint.config.get("architectures") or ["model of a factory"])[0]
    found = f"{checkpoint.folder} has a head of its own" if checkpoint.is_tower else f"a {kind}"
    raise CheckpointError(
        f"tasks.{task.name}.zero_shot: expected a CLIP vision tower as the expert, whose head is "
        f"made of texts; found {found}: leave 'zero_shot' out"
    )
