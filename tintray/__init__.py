"""tintray: many fine-tuned models, one backbone, one small layer per task.

::

    import tintray

    merge = tintray.load("tintray-data/merges/digits/v1")
    model = merge.for_task("parity")
    logits = model(pixel_values=images).logits

This is the public face; everything heavy is imported when it is first used. All errors are in
``tintray.errors``, and what operators call is in ``tintray.jobs.upkeep``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tintray.errors import (
        CancelledError,
        FitError,
        InputError,
        NotFoundError,
        StorageError,
        TimedOutError,
        TintrayError,
    )
    from tintray.handles import Job, Merge, job, load, merge, run, submit
    from tintray.jobs.api import compose, list_merges, merge_checkpoints, validate
    from tintray.jobs.config.job_file import JobSpec, load_spec, parse_spec
    from tintray.jobs.queue.views import list_jobs
    from tintray.jobs.runs.method_list import list_methods
    from tintray.jobs.runs.plan import plan

__all__ = [
    "CancelledError",
    "FitError",
    "InputError",
    "Job",
    "JobSpec",
    "Merge",
    "NotFoundError",
    "StorageError",
    "TimedOutError",
    "TintrayError",
    "compose",
    "job",
    "list_jobs",
    "list_merges",
    "list_methods",
    "load",
    "load_spec",
    "merge",
    "merge_checkpoints",
    "parse_spec",
    "plan",
    "run",
    "submit",
    "validate",
]

_MODULES = {
    "handles": ("Job", "Merge", "job", "load", "merge", "run", "submit"),
    "jobs.api": ("compose", "list_merges", "merge_checkpoints", "validate"),
    "jobs.config.job_file": ("JobSpec", "load_spec", "parse_spec"),
    "jobs.queue.views": ("list_jobs",),
    "jobs.runs.method_list": ("list_methods",),
    "jobs.runs.plan": ("plan",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tintray' has no attribute {name!r}")
    from importlib import import_module

    home = next((module for module, names in _MODULES.items() if name in names), "errors")
    return getattr(import_module(f"tintray.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
