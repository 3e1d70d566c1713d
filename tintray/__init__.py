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
    from tintray.errors import TintrayError
    from tintray.jobs.api import (
        compare,
        evaluate,
        export,
        list_merges,
        load,
        merge_checkpoints,
        run,
        show,
        validate,
    )
    from tintray.jobs.config.job_file import JobSpec, load_spec, parse_spec
    from tintray.jobs.config.mergekit import read_mergekit
    from tintray.jobs.queue.differences import diff
    from tintray.jobs.queue.following import logs, wait, watch
    from tintray.jobs.queue.submission import cancel, resume, retry, set_limit, submit
    from tintray.jobs.queue.views import list_clusters, list_jobs, status
    from tintray.jobs.runs.grow import add, refresh, remove
    from tintray.jobs.runs.history import diff_merges, history, rollback
    from tintray.jobs.runs.method_list import list_methods
    from tintray.jobs.runs.plan import plan
    from tintray.jobs.upkeep.doctor import diagnose
    from tintray.jobs.upkeep.setup import configure
    from tintray.jobs.upkeep.stores import (
        check_catalog,
        collect_garbage,
        copy_merge,
        list_artifacts,
        pin,
        remove_merge,
        upgrade_catalog,
        verify,
    )
    from tintray.published.merge import Merge

__all__ = [
    "JobSpec",
    "Merge",
    "TintrayError",
    "add",
    "cancel",
    "check_catalog",
    "collect_garbage",
    "compare",
    "configure",
    "copy_merge",
    "diagnose",
    "diff",
    "diff_merges",
    "evaluate",
    "export",
    "history",
    "list_artifacts",
    "list_clusters",
    "list_jobs",
    "list_merges",
    "list_methods",
    "load",
    "load_spec",
    "logs",
    "merge_checkpoints",
    "parse_spec",
    "pin",
    "plan",
    "read_mergekit",
    "refresh",
    "remove",
    "remove_merge",
    "resume",
    "retry",
    "rollback",
    "run",
    "set_limit",
    "show",
    "status",
    "submit",
    "upgrade_catalog",
    "validate",
    "verify",
    "wait",
    "watch",
]

_HOME = {
    "add": "tintray.jobs.runs.grow",
    "remove": "tintray.jobs.runs.grow",
    "refresh": "tintray.jobs.runs.grow",
    "rollback": "tintray.jobs.runs.history",
    "history": "tintray.jobs.runs.history",
    "diff_merges": "tintray.jobs.runs.history",
    "list_methods": "tintray.jobs.runs.method_list",
    "list_artifacts": "tintray.jobs.upkeep.stores",
    "verify": "tintray.jobs.upkeep.stores",
    "pin": "tintray.jobs.upkeep.stores",
    "collect_garbage": "tintray.jobs.upkeep.stores",
    "remove_merge": "tintray.jobs.upkeep.stores",
    "copy_merge": "tintray.jobs.upkeep.stores",
    "upgrade_catalog": "tintray.jobs.upkeep.stores",
    "check_catalog": "tintray.jobs.upkeep.stores",
    "diagnose": "tintray.jobs.upkeep.doctor",
    "read_mergekit": "tintray.jobs.config.mergekit",
    "diff": "tintray.jobs.queue.differences",
    "logs": "tintray.jobs.queue.following",
    "wait": "tintray.jobs.queue.following",
    "watch": "tintray.jobs.queue.following",
    "cancel": "tintray.jobs.queue.submission",
    "resume": "tintray.jobs.queue.submission",
    "retry": "tintray.jobs.queue.submission",
    "set_limit": "tintray.jobs.queue.submission",
    "submit": "tintray.jobs.queue.submission",
    "list_clusters": "tintray.jobs.queue.views",
    "list_jobs": "tintray.jobs.queue.views",
    "status": "tintray.jobs.queue.views",
    "configure": "tintray.jobs.upkeep.setup",
    "plan": "tintray.jobs.runs.plan",
    "JobSpec": "tintray.jobs.config.job_file",
    "load_spec": "tintray.jobs.config.job_file",
    "parse_spec": "tintray.jobs.config.job_file",
    "Merge": "tintray.published.merge",
    "TintrayError": "tintray.errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tintray' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, "tintray.jobs.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
