"""A job file's ``cluster`` and ``tracking``: where a job runs, and who is told of it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_serializer, field_validator

from tintray.jobs.config.fields import ShardCount, TrackingLocation, WorkerCount
from tintray.jobs.config.section import Section


class ClusterSpec(Section):
    """Where the job runs. Nothing here changes what it learns, but for the rounding of a GPU."""

    address: str | None = Field(default=None, min_length=1, examples=["ray://head:10001"])
    """The Ray cluster to join; left out, one is started on this machine."""
    workers: WorkerCount = Field(default="auto", examples=[4])
    """Worker processes; 0 runs in this process without Ray, `auto` goes by the cluster."""
    threads_per_worker: int = Field(default=1, ge=1, examples=[4])
    """Threads with which a worker computes."""
    shards: ShardCount = Field(default="auto", examples=[2])
    """Processes that hold the task vectors; `auto` goes by their size and the cluster."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1, examples=[1])
    """With 1, every worker has a GPU, and task vectors lie on GPUs too; 0 computes on CPUs. With a
    part of 1, such as 0.25, the job's one worker shares a GPU with other jobs, and takes no more
    than that part of its memory."""
    gradient_checkpointing: bool | None = Field(default=None, examples=[True])
    """Whether layers compute their activations again for the backward pass, instead of keeping
    them: the same bits for less memory and about a third more time. Left out, they do where the job
    would not fit otherwise."""
    restarts: int = Field(default=10, ge=0, examples=[0])
    """How often the job goes on by itself after a loss of workers, memory, store or catalog."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where rounds compute, as torch calls it."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @field_validator("address")
    @classmethod
    def _without_credentials(cls, address: str | None) -> str | None:
        if address is not None and ("@" in address or "?" in address):
            raise ValueError(
                "expected an address without user, password and query; a cluster with tokens "
                "reads RAY_AUTH_TOKEN_PATH"
            )
        return address

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_worker_on_a_part(cls, gpus: float, info: ValidationInfo) -> float:
        workers = info.data.get("workers")
        if 0 < gpus < 1 and workers not in {0, 1, "auto"}:
            raise ValueError(
                f"expected 1 where a job has several workers, found {gpus:g} beside workers: "
                f"{workers}; a job on a part of a GPU has one worker: write workers: 1"
            )
        return gpus

    @field_serializer("gpus_per_worker")
    def _whole_as_ever(self, gpus: float) -> int | float:
        """Jobs of which whole numbers were recorded keep their hash."""
        return int(gpus) if gpus == int(gpus) else gpus

    @field_validator("workers")
    @classmethod
    def _cluster_has_workers(cls, workers: WorkerCount, info: ValidationInfo) -> WorkerCount:
        if workers == 0 and info.data.get("address") is not None:
            raise ValueError("expected 1 or more or 'auto' where an address is given, found 0")
        return workers


TrackerName = Literal["mlflow", "wandb", "tensorboard"]
_KEPT_AT = {
    "mlflow": "a URL such as http://mlflow:5000 or sqlite:///mlflow.db",
    "wandb": "the URL of a server such as https://wandb.example.org",
    "tensorboard": "a folder",
}


class TrackingSpec(Section):
    """Who is told of the job while it runs, besides the catalog; `tracking: mlflow` is enough."""

    tracker: TrackerName = Field(examples=["mlflow"])
    """Which tracker; its package has to be installed where the job runs."""
    to: TrackingLocation | None = Field(default=None, examples=["http://mlflow:5000"])
    """MLflow's tracking URI, a server of W&B, or the folder of TensorBoard's files.

    Left out, what the tracker's own variables say; of TensorBoard, `tensorboard` in the store."""
    project: str | None = Field(default=None, min_length=1, examples=["merging"])
    """MLflow's experiment or W&B's project; left out, its own variable, else the job's name."""
    alias: str = Field(default="newest", pattern=r"^[\w-]{1,100}$", examples=["candidate"])
    """The alias that MLflow's model version and W&B's artifact get when a merge is published."""

    @field_validator("alias")
    @classmethod
    def _alias_is_free(cls, alias: str) -> str:
        if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
            raise ValueError(f"expected none that trackers set themselves, found {alias!r}")
        return alias

    @field_validator("to")
    @classmethod
    def _tracker_keeps_it_there(
        cls, to: TrackingLocation | None, info: ValidationInfo
    ) -> TrackingLocation | None:
        tracker = info.data.get("tracker")
        if to is None or tracker is None:
            return to
        url = to.startswith(("http://", "https://")) or (tracker == "mlflow" and not to.path)
        if url == (tracker == "tensorboard") or ("://" in to and not url):
            raise ValueError(f"expected {_KEPT_AT[tracker]}, found {to.written!r}")
        return to


Tracking = Annotated[
    TrackingSpec | None,
    BeforeValidator(
        lambda value: {"tracker": value} if isinstance(value, str) else value,
        json_schema_input_type=TrackingSpec | TrackerName | None,
    ),
]
