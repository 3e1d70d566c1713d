"""What can be known of a job's files in a moment, before it is submitted; imports nothing heavy.

The whole check, of tensors and data against each other, is the job's own first stage, on the
cluster; ``tintray validate`` does it here.
"""

from __future__ import annotations

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import CheckpointError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location

_TOWER = ("clip", "clip_vision_model")  # an expert may be the part of it that sees
_ADAPTER = "adapter_config.json"


def check_files(spec: JobSpec) -> None:
    """Open every model folder of a job that is on this machine; tensors are not read.

    One that is no model, cannot be read, or is of another type than the base is refused.
    """
    base = _opened(spec.base, "base", spec.factory)
    for task in spec.tasks:
        role = f"tasks.{task.name}.expert"
        expert = _opened(task.expert, role, spec.factory)
        if base is None or expert is None:
            continue
        wanted, found = (model.config.get("model_type") for model in (base, expert))
        if wanted != found and (wanted, found) != _TOWER:
            raise CheckpointError(
                f"{role}: expected a model of the base's type, {wanted!r}, found {found!r} in "
                f"{expert.folder}"
            )


def _opened(location: Location, role: str, factory: str | None) -> ModelFolder | None:
    folder = Location(location).path
    if folder is None or (folder / _ADAPTER).is_file():  # elsewhere, or not a model by itself
        return None
    return open_model_folder(folder, role=role, factory=factory)
