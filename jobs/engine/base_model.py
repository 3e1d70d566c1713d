"""The base model of a job, opened and split for the site that its tasks tint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import InputError, StorageError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import share_factories
from tintray.jobs.engine.sources import cache_folder, local_folder
from tintray.models.comparing import check_same_computation
from tintray.models.loading import load_base
from tintray.models.structure import backbone_names
from tintray.tinting.partition import Partition, partition
from tintray.tinting.site_search import candidates


@dataclass(frozen=True)
class SplitModel:
    """What a job stands on: its base, checked, and how it splits for the tint sites.

    It is split for the head, where the job's own sites are still to be found.
    """

    digest: str
    partition: Partition
    like: tuple[str, str] = ("", "")  # an expert that could be opened, and how messages call it

    @property
    def parameters(self) -> int:
        """Parameters of the backbone, the tint site included."""
        return _parameters(self.partition.module)


def _parameters(module: nn.Module) -> int:
    return sum(module.get_parameter(n).numel() for n in backbone_names(module))


def load_base_model(spec: JobSpec) -> SplitModel:
    """Open the base and resolve the tint site; reads one model, computes nothing."""
    share_factories()
    cache = cache_folder()
    base = open_model_folder(local_folder(spec.base, cache), role="base", factory=spec.factory)
    like, expert = _first_expert(spec, base, cache)
    check_same_computation(base, expert, "the base", like[1])
    module = load_base(base, like=expert, as_stored=True)
    if spec.tint.auto:  # still to be found: all but the head is laid out
        candidates(module, spec.tint.most_numbers(_parameters(module)))
    return SplitModel(base.digest(), split_for(module, spec), like)


def split_for(module: nn.Module, spec: JobSpec) -> Partition:
    """How a base splits for a job's tint sites, with the rates of its fit."""
    return partition(
        module,
        spec.tint.places,
        spec.merge.granularity,
        learned=spec.tint.learned,
        tint_lr=spec.fit.tint_lr,
    )


def _first_expert(
    spec: JobSpec, base: ModelFolder, cache: Path
) -> tuple[tuple[str, str], ModelFolder]:
    """The first task's expert; of a job that leaves tasks out, the first that can be opened."""
    for last, task in enumerate(spec.tasks, start=1 - len(spec.tasks)):
        role = f"tasks.{task.name}.expert"
        try:
            folder = local_folder(task.expert, cache)
            expert = open_model_folder(folder, role=role, base=base, factory=spec.factory)
            return (str(task.expert), role), expert
        except StorageError:
            raise
        except InputError:
            if spec.on_task_error == "fail" or last == 0:
                raise
    raise AssertionError("a job has tasks")
