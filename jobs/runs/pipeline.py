"""The one way in which every operation runs: check, prepare, fit, measure, guard, publish.

A fit, a merging method, an addition, a refresh and a removal differ in their :class:`Plan` alone.
What one of them tells and records, all do. The phases are those that the catalog knows; every
change of phase is a compare-and-set there with its reason, and whatever goes wrong ends there as
``failed`` or ``cancelled`` with one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self, TypeVar

import torch

from tintray.errors import GrownError, GuardError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine.backend import Backend, open_backend
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared
from tintray.jobs.engine.finding import manifest_of
from tintray.jobs.engine.fit_checkpoints import delete_blobs
from tintray.jobs.engine.job_size import object_store_needed
from tintray.jobs.events import Notice, Published
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.outcome import Checked, Lineage, Outcome, Result
from tintray.jobs.runs.publication import publish
from tintray.jobs.runs.records import record_checked, record_prepared, remark_on_result
from tintray.jobs.runs.recovery import Cause, Recovery, Remedy
from tintray.jobs.tracking.following import followed
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import parse_merge_url
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState
from tintray.tasks.evaluation import check_finite
from tintray.tasks.metrics import find_metric


@dataclass(frozen=True)
class Context:
    """What every step works with."""

    run: JobRun
    backend: Backend
    store: ArtifactStore
    prepared: dict[str, Prepared] = field(default_factory=dict)  # by new task, as they are done


C = TypeVar("C", bound=Checked)
P = TypeVar("P")
F = TypeVar("F")


class Plan(Protocol[C, P, F]):
    """What one operation does in each step; each takes what the step before gave."""

    @property
    def spec(self) -> JobSpec:
        """The job of the merge that comes out."""

    @property
    def base(self) -> SplitModel:
        """What it stands on."""

    @property
    def lineage(self) -> Lineage | None:
        """What it grows from; None for a merge that comes from experts alone."""

    @property
    def reasons(self) -> Mapping[JobState, str]:
        """What is said of each phase as it begins."""

    def check(self, context: Context) -> C:
        """Refuse what cannot be used, before compute is spent."""

    def prepare(self, context: Context, checked: C) -> P:
        """Have what a fit needs of every task: self-labels, task vectors."""

    def fit(self, context: Context, prepared: P) -> F:
        """Learn, or merge by a rule."""

    def measure(self, context: Context, fitted: F) -> Result:
        """Compare the merge with its experts."""

    def after(self, cause: Cause) -> Self:
        """The plan with which a job goes on that failed for such a reason."""


def execute(plan: Plan[C, P, F], run: JobRun, store: ArtifactStore) -> Manifest:
    """Run a plan to its published merge; returns the manifest. The job's lease is held.

    What fails on the way and can be tried again is, as ``tintray.jobs.runs.recovery`` says: from
    the beginning, where what was computed is found again, and the fit at its last checkpoint.
    """
    with followed(plan.spec, run.job_id, len(run.recovered), run.on_event) as run.on_event:
        return _until_over(plan, run, store)


def _until_over(plan: Plan[C, P, F], run: JobRun, store: ArtifactStore) -> Manifest:
    recovery = Recovery(plan.spec.cluster.restarts, len(run.recovered))
    while True:
        try:
            if (ref := run.catalog.merges.of_job(run.job_id)) is not None:
                return _finish(ref, run, store)
            return _execute(plan, run, store)
        except GrownError as error:
            run.on_event(Notice(f"{error}: the fit goes on with them"))
        except Exception as error:
            run.stopper.check()  # a stop that a library took for a failure of its own
            recovery.reached(run.furthest)
            remedy = None if run.state is JobState.SUCCEEDED else recovery.remedy(error)
            if remedy is None:
                raise
            plan = plan.after(remedy.cause)
            recovery.wait(partial(_again, run, store, remedy), run.stopper.check)


def _again(run: JobRun, store: ArtifactStore, remedy: Remedy) -> None:
    """Let a job begin again; AwayError while its store or its catalog does not answer."""
    store.check_writable()
    run.lease.confirm()
    if remedy.cause == "memory":
        delete_blobs(store, run.catalog.checkpoints.drop(run.job_id, token=run.lease.token))
    run.again(remedy.reason)


def _finish(ref: str, run: JobRun, store: ArtifactStore) -> Manifest:
    """The end of a job that failed when its merge was published already."""
    manifest = manifest_of(*parse_merge_url(f"{store.url}/merges/{ref}"))
    _succeed(manifest, run, store)
    return manifest


def _succeed(manifest: Manifest, run: JobRun, store: ArtifactStore) -> None:
    if run.state is not JobState.SUCCEEDED:
        run.move(JobState.SUCCEEDED, f"published as {manifest.ref}")
    delete_blobs(store, run.catalog.checkpoints.drop(run.job_id))


def _execute(plan: Plan[C, P, F], run: JobRun, store: ArtifactStore) -> Manifest:
    with backend_for(plan.spec, plan.base) as backend:
        context = Context(run, backend, store)
        with run.phase(JobState.PLANNING, plan.reasons[JobState.PLANNING]):
            checked = plan.check(context)
            record_checked(run, checked, plan.lineage)
        with run.phase(JobState.PREPARING, plan.reasons[JobState.PREPARING]):
            prepared = plan.prepare(context, checked)
            record_prepared(run, store, checked.base, context.prepared)
        with run.phase(JobState.FITTING, plan.reasons[JobState.FITTING]):
            fitted = plan.fit(context, prepared)
        with run.phase(JobState.EVALUATING, "measuring the merge against its experts"):
            result = plan.measure(context, fitted)
        outcome = Outcome(checked, context.prepared, result, plan.lineage)
        guard(outcome)
        remark_on_result(run, outcome)
        with run.phase(JobState.PUBLISHING, f"writing the merge to {store.url}"):
            manifest = publish(outcome, run, store)
            _succeed(manifest, run, store)
    run.on_event(Published(f"{store.url}/merges/{manifest.ref}"))
    return manifest


def guard(outcome: Outcome) -> None:
    """Refuse what must not be published.

    Raises GuardError if an old task would lose more than the tolerance; FitError if a figure is no
    number.
    """
    lineage, losses = outcome.lineage, outcome.result.losses
    if lineage is not None and losses:
        units = sorted({find_metric(loss.metric).lost_in for loss in losses})
        adding = lineage.change.operation != "remove"
        raise GuardError(
            f"nothing was published by this change of {lineage.parent.ref}: "
            f"{'; '.join(map(str, losses))}; growth.tolerance is "
            f"{outcome.checked.spec.growth.tolerance:g} ({'; '.join(units)})"
            f"{'; --mode tint leaves the backbone as it is' if adding else ''}"
        )
    check_finite(outcome.result.scores.values())


def open_store_and_catalog(spec: JobSpec) -> tuple[ArtifactStore, Catalog]:
    """The job's store, proved to be writable, and its catalog.

    Raises InputError if one of them cannot be used: nothing has been computed, and the user can
    mend it.
    """
    with as_input_error():
        return open_writable(spec), Catalog.open(spec.catalog)


def open_writable(spec: JobSpec) -> ArtifactStore:
    """The job's store, proved to be writable; ``InputError`` if it is not."""
    with as_input_error():
        store = open_store(spec.store)
        store.check_writable()
        return store


def on_gpus_there(spec: JobSpec) -> JobSpec:
    """The job of a merge that goes on here: on CPUs if it was fitted on GPUs and there are none."""
    elsewhere = spec.cluster.address is not None
    if elsewhere or not spec.cluster.gpus_per_worker or torch.cuda.is_available():
        return spec
    return spec.changed(cluster={"gpus_per_worker": 0})


def device_here(spec: JobSpec) -> str:
    """Where this process computes what a published merge needs, whatever cluster its job had."""
    return on_gpus_there(spec.changed(cluster={"address": None})).cluster.device


def backend_for(spec: JobSpec, base: SplitModel) -> AbstractContextManager[Backend]:
    """Where the job's members run, closed at the end whatever happens."""
    return closing(
        open_backend(
            address=spec.cluster.address,
            workers=spec.cluster.workers,
            threads=spec.cluster.threads_per_worker,
            plan=object_store_needed(spec, base),
            gpus=spec.cluster.gpus_per_worker,
        )
    )
