"""A job as a run of MLflow, and its merge as a version of a registered model."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tintray.errors import shortened
from tintray.jobs.tracking.tracker import End, TrackedJob, TrackedMerge
from tintray.jobs.tracking.values import Value

JOB = "tintray.job"
"""The tag by which a job's run is found again."""

_LONGEST = 500  # characters of a parameter, by the oldest limit of MLflow's servers
_MOST_PARAMETERS, _MOST_VALUES = 100, 1000  # in one request
_STATUS: Mapping[End, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


def open_run(job: TrackedJob) -> MlflowRun:
    """The run of a job; MLflow's own variables say what the job file does not."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own patience is four minutes; what it does not take is sent again anyway.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowRun(MlflowClient(job.spec.to), job)


class MlflowRun:
    """The run of a job."""

    def __init__(self, client: MlflowClient, job: TrackedJob) -> None:
        self._client, self._job = client, job
        named = job.spec.project or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        experiment = self._experiment(named or job.name)
        found = client.search_runs([experiment], f"tags.`{JOB}` = '{job.id}'", max_results=1)
        if found:
            self._run = found[0]
            client.update_run(self._run.info.run_id, status="RUNNING")
        else:
            self._run = client.create_run(experiment, run_name=job.name, tags={JOB: job.id})
        self._id = self._run.info.run_id

    def _experiment(self, name: str) -> str:
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name))

    def begin(self, parameters: Mapping[str, str], lineage: Mapping[str, str]) -> None:
        """Take the resolved job, and what it stands on; what is known of a run stays."""
        known = self._client.get_run(self._id).data.params
        new = [Param(n, shortened(v, _LONGEST)) for n, v in parameters.items() if n not in known]
        for first in range(0, len(new), _MOST_PARAMETERS):
            part = new[first : first + _MOST_PARAMETERS]
            self._client.log_batch(self._id, params=part)
        origins = {name: value for name, value in lineage.items() if "." not in name}
        tags = [RunTag(f"tintray.{name}", value) for name, value in origins.items()]
        self._client.log_batch(self._id, tags=tags)
        self._client.log_dict(self._id, dict(lineage), "lineage.json")

    def log(self, values: Sequence[Value]) -> None:
        """Take points of curves."""
        now = int(time.time() * 1000)
        for first in range(0, len(values), _MOST_VALUES):
            part = values[first : first + _MOST_VALUES]
            metrics = [Metric(of.name, of.value, now, of.step) for of in part]
            self._client.log_batch(self._id, metrics=metrics)

    def published(self, merge: TrackedMerge, step: int) -> None:
        """Take the figures and files of the merge, and register it under its name."""
        self.log([Value(step, name, value) for name, value in merge.figures.items()])
        for path in merge.files:
            self._client.log_artifact(self._id, str(path))
        tags = {"tintray.merge": merge.ref, "tintray.url": merge.url}
        self._client.log_batch(self._id, tags=[RunTag(*tag) for tag in tags.items()])
        name = self._job.name
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._client.search_model_versions(f"run_id = '{self._id}'")
        version = found[0] if found else self._register(name, merge, tags)
        self._client.set_registered_model_alias(name, self._job.spec.alias, version.version)

    def _register(self, name: str, merge: TrackedMerge, tags: Mapping[str, str]) -> ModelVersion:
        """A new version of a model: the merge where it lies, or the files of the run.

        A server takes no folder that it may not be able to see.
        """
        about = f"tintray.load({merge.url!r})"
        source = merge.url.removeprefix("file://")

        def create(source: str) -> ModelVersion:
            return self._client.create_model_version(
                name, source, run_id=self._id, tags=dict(tags), description=about
            )

        try:
            return create(source)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return create(str(self._run.info.artifact_uri))

    def end(self, how: End) -> None:
        """Close the run."""
        self._client.set_terminated(self._id, _STATUS[how])
