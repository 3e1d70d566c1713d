"""What a child stands on: the base of its parent, split as the parent's was."""

from __future__ import annotations

from tintray.checkpoints.model_folder import open_model_folder
from tintray.errors import CheckpointError, InputError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.published_tasks import kept_checkpoint
from tintray.jobs.engine.sources import cache_folder, local_folder
from tintray.jobs.engine.worker_pool import SplitModel, load_base_model
from tintray.jobs.runs.growth.attempts import part_of
from tintray.jobs.runs.growth.change import Change
from tintray.jobs.runs.growth.parent import Parent
from tintray.models.loading import load_base
from tintray.tinting.partition import partition

SUMS = ("task_arithmetic", "average", "base")
"""Starts of Λ whose directions are the task vectors themselves, whichever other tasks there are."""


def child_ground(parent: Parent, change: Change, spec: JobSpec) -> SplitModel:
    """Open the base and lay out what is shared; no old expert is read.

    Raises
    ------
    CheckpointError
        If the base is not the one that the merge was made from.
    InputError
        If a merge of another method would have to be taken apart.
    """
    if change.operation == "remove":
        ground = _without_experts(parent, spec)
    else:
        ground = load_base_model(part_of(spec, change.names))
    expected = parent.manifest["base"]["sha256"]
    if ground.digest != expected:
        raise CheckpointError(
            f"base: {spec.base} is not what {parent.ref} was made from (sha256 "
            f"{ground.digest[:12]}…, expected {expected[:12]}…); put that base back"
        )
    if ground.partition.layout.to_json() != parent.manifest["units"]:
        raise InputError(
            f"{parent.ref} was laid out otherwise, by another version of tintray; run its job again"
        )
    return ground


def _without_experts(parent: Parent, spec: JobSpec) -> SplitModel:
    cache = cache_folder()
    base = open_model_folder(local_folder(spec.base, cache), role="base", factory=spec.factory)
    first = parent.merge.tasks[0]
    like = kept_checkpoint(parent.stand_in(first), first, cache)
    module = load_base(base, like=like)
    site, granularity, rank = spec.tint.site, spec.merge.granularity, spec.tint.rank
    nobody = ("", "")  # no expert is opened: a member takes its tasks' configurations
    split = partition(module, site, granularity, rank, learned=spec.tint.learned)
    return SplitModel(base.digest(), split, site, nobody)


def sums_task_vectors(spec: JobSpec) -> bool:
    """Whether a merge's backbone is θ₀ + Λ·T, so that a task can be taken off or added to it."""
    return spec.merge.learned and spec.merge.init in SUMS
