"""tintray: many fine-tuned models, one backbone, one small layer per task.

::

    import tintray

    merge = tintray.load("tintray-data/merges/digits/v1")
    model = merge.for_task("parity")
    logits = model(pixel_values=images).logits

This is the public face; everything heavy is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.api import compare, evaluate, export, list_merges, load, run, show, validate
    from jobs.planning.estimates import plan
    from jobs.queue.differences import diff
    from jobs.queue.following import logs, wait, watch
    from jobs.queue.submission import cancel, resume, retry, set_limit, submit
    from jobs.queue.views import list_clusters, list_jobs, status
    from jobs.spec.sections import JobSpec, load_spec, parse_spec
    from jobs.upkeep.setup import configure
    from tintray.bundle import Merge
    from tintray.errors import TintrayError

__all__ = [
    "JobSpec",
    "Merge",
    "TintrayError",
    "cancel",
    "compare",
    "configure",
    "diff",
    "evaluate",
    "export",
    "list_clusters",
    "list_jobs",
    "list_merges",
    "load",
    "load_spec",
    "logs",
    "parse_spec",
    "plan",
    "resume",
    "retry",
    "run",
    "set_limit",
    "show",
    "status",
    "submit",
    "validate",
    "wait",
    "watch",
]

_HOME = {
    "diff": "jobs.queue.differences",
    "logs": "jobs.queue.following",
    "wait": "jobs.queue.following",
    "watch": "jobs.queue.following",
    "cancel": "jobs.queue.submission",
    "resume": "jobs.queue.submission",
    "retry": "jobs.queue.submission",
    "set_limit": "jobs.queue.submission",
    "submit": "jobs.queue.submission",
    "list_clusters": "jobs.queue.views",
    "list_jobs": "jobs.queue.views",
    "status": "jobs.queue.views",
    "configure": "jobs.upkeep.setup",
    "plan": "jobs.planning.estimates",
    "JobSpec": "jobs.spec.sections",
    "load_spec": "jobs.spec.sections",
    "parse_spec": "jobs.spec.sections",
    "Merge": "tintray.bundle",
    "TintrayError": "tintray.errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tintray' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, "jobs.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
