"""What can be told of a job before it runs, and without leaving anything behind."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tintray.errors import NotFoundError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import limits
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import TaskFacts
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.jobs.results import ValidationReport
from tintray.jobs.runs.advice import far_tasks
from tintray.jobs.runs.methods import resolve_job
from tintray.jobs.runs.pipeline import open_writable
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.secrets import is_plain_file


def validate(spec: JobSpec) -> ValidationReport:
    """Check a job and all that it refers to, in this process; nothing is written.

    One example of each task's data is run, by its expert and by the model that would be fitted.

    Raises ``InputError`` for the first thing that would make the job fail.
    """
    spec, ground = resolve_job(spec)
    check_places(spec)
    backend = InProcessBackend(spec.cluster.threads_per_worker)
    try:
        facts = WorkerPool(Worker, backend, spec.here(), ground).check()
    finally:
        backend.close()
    notices = []
    if spec.tint.auto:
        notices.append("tint.sites is found by the run; what is shown of tints is for the head")
    return report(spec, ground, facts, notices=notices)


def report(
    spec: JobSpec,
    ground: SplitModel,
    facts: Mapping[str, TaskFacts],
    *,
    own: Mapping[str, int] | None = None,
    notices: Sequence[str] = (),
) -> ValidationReport:
    """What was found of tasks that were checked; ``own`` has what others have to themselves."""
    unlabelled = [task.name for task in spec.tasks if task.test is None]
    told = "without a test set, judged by agreement with the expert"
    return ValidationReport(
        name=spec.name,
        tasks=[task.name for task in spec.tasks],
        backbone_parameters=ground.parameters,
        units=len(ground.partition.layout.units),
        site=spec.tint.told + (f", in {bits} bits" if (bits := spec.tint.bits) else ""),
        tint_parameters={
            **(own or {}),
            **{name: found.tint_parameters for name, found in facts.items()},
        },
        pools={name: taken for fact in facts.values() for name, taken in fact.sizes().items()},
        max_pool_bytes=limits().max_pool_bytes,
        max_seconds=limits().max_seconds,
        notices=[
            *notices,
            *([f"{told}: {', '.join(unlabelled)}"] if unlabelled else []),
            *(text for found in facts.values() for text in found.warnings()),
            *far_tasks(facts),
        ],
    )


def check_places(spec: JobSpec) -> None:
    """Prove that the job's store and catalog can be used, and make neither.

    Raises ``InputError`` with the sentence that the job itself would end with.
    """
    if spec.store.path is None or not _can_be_made(spec.store.path):
        open_writable(spec)
    with as_input_error():
        with suppress(NotFoundError):
            Catalog.open(spec.catalog, create=False).close()
            return
        file = Path(spec.catalog.removeprefix("sqlite:///"))
        if is_plain_file(spec.catalog) and not _can_be_made(file):
            Catalog.open(spec.catalog).close()


def _can_be_made(path: Path) -> bool:
    """Whether there is nothing at a path, and what it would lie in may be written."""
    if path.exists():
        return False
    there = next(parent for parent in path.parents if parent.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
