"""A job as a run of Weights & Biases, and its merge as an artifact."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import wandb

from tintray.jobs.tracking.tracker import End, TrackedJob, TrackedMerge
from tintray.jobs.tracking.values import Value

_SECONDS = 20  # that its server may take to answer at the beginning, or to take what is left


def open_run(job: TrackedJob) -> WandbRun:
    """The run of a job, whose id is the job's; the variables of W&B say what the job file does not.

    Raises RuntimeError where nobody is logged in, instead of asking on the terminal.
    """
    settings = wandb.Settings(
        console="off",
        silent=True,
        init_timeout=_SECONDS,
        finish_timeout=_SECONDS,
        **({"base_url": job.spec.to} if job.spec.to else {}),
    )
    mode = os.environ.get("WANDB_MODE", "online")
    if mode in ("online", "shared") and not wandb.Api(api_key=None).api_key:
        raise RuntimeError("expected WANDB_API_KEY, `wandb login`, or WANDB_MODE=offline")
    project = job.spec.project or os.environ.get("WANDB_PROJECT") or job.name
    run = wandb.init(id=job.id, resume="allow", project=project, name=job.name, settings=settings)
    return WandbRun(run, job)


class WandbRun:
    """The run of a job."""

    def __init__(self, run: Any, job: TrackedJob) -> None:
        self._run, self._job = run, job

    def begin(self, parameters: Mapping[str, str], lineage: Mapping[str, str]) -> None:
        """Take the resolved job, and what it stands on."""
        self._run.config.update({**parameters, "lineage": dict(lineage)}, allow_val_change=True)

    def log(self, values: Sequence[Value]) -> None:
        """Take points of curves; those of steps that it has already, it leaves out itself."""
        for step, of_step in groupby(values, key=lambda value: value.step):
            self._run.log({of.name: of.value for of in of_step}, step=step)

    def published(self, merge: TrackedMerge, step: int) -> None:
        """Take the figures and files of the merge."""
        self._run.summary.update(dict(merge.figures))
        about = {"merge": merge.ref, "url": merge.url}
        artifact = wandb.Artifact(self._job.name, "merge", metadata=about)
        for path in merge.files:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact, aliases=[self._job.spec.alias])

    def end(self, how: End) -> None:
        """Close the run."""
        self._run.finish(exit_code=0 if how == "finished" else 1)
