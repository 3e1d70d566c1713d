"""The members of a growth job: new tasks with their experts, or old ones without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.backend import Backend
from tintray.jobs.engine.published_tasks import Kept
from tintray.jobs.engine.worker_pool import SplitModel, WorkerPool
from tintray.jobs.runs.growth.tinter import TintConfig, Tinted, Tinter
from tintray.tasks.evaluation import TaskScore


class GrowthWorkerPool(WorkerPool):
    """A crew whose workers also learn tint layers under a backbone that stays."""

    def __init__(
        self,
        fleet: Backend,
        spec: JobSpec,
        ground: SplitModel,
        kept: Mapping[str, Kept] | None = None,
    ) -> None:
        super().__init__(fleet, spec, ground, worker=Tinter, kept=kept)

    def fit_tints(self, names: Iterable[str], order: TintConfig, theta: Floats) -> list[Tinted]:
        """Learn these tasks' tint layers under θ [P]."""
        return self._each("fit_tint", names, order, self._fleet.put(theta))

    def held_agreement(self, theta: Floats) -> dict[str, float]:
        """Each task's agreement with its expert on what was held back, under θ [P]."""
        names = [order.name for order in self.orders]
        found = self._each("held_agreement", names, self._fleet.put(theta))
        return dict(zip(names, found, strict=True))

    def evaluate(self, names: Iterable[str], theta: Floats) -> list[TaskScore]:
        """Measure these tasks under θ [P]."""
        return self._each("evaluate", names, self._fleet.put(theta))

    def give_tints(self, tints: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Let tasks go on from these tint layers."""
        self._fleet.get(
            [
                self._tasks[name].call("give_tint", name, {k: t.numpy() for k, t in own.items()})
                for name, own in tints.items()
            ]
        )

    def _each(self, method: str, names: Iterable[str], *arguments: Any) -> list[Any]:
        return self._fleet.get([self._tasks[name].call(method, name, *arguments) for name in names])
