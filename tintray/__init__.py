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
    from jobs.api import (
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
    from jobs.growth.api import add, refresh, remove, rollback
    from jobs.growth.history import diff_merges, history
    from jobs.methods.listing import list_methods
    from jobs.planning.estimates import plan
    from jobs.queue.differences import diff
    from jobs.queue.following import logs, wait, watch
    from jobs.queue.submission import cancel, resume, retry, set_limit, submit
    from jobs.queue.views import list_clusters, list_jobs, status
    from jobs.spec.mergekit import read_mergekit
    from jobs.spec.sections import JobSpec, load_spec, parse_spec
    from jobs.upkeep.doctor import diagnose
    from jobs.upkeep.setup import configure
    from jobs.upkeep.stores import (
        check_catalog,
        collect_garbage,
        copy_merge,
        list_artifacts,
        pin,
        remove_merge,
        upgrade_catalog,
        verify,
    )
    from jobs.zoo.making import make_zoo
    from tintray.bundle import Merge
    from tintray.errors import TintrayError

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
    "make_zoo",
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
    "make_zoo": "jobs.zoo.making",
    "add": "jobs.growth.api",
    "remove": "jobs.growth.api",
    "refresh": "jobs.growth.api",
    "rollback": "jobs.growth.api",
    "history": "jobs.growth.history",
    "diff_merges": "jobs.growth.history",
    "list_methods": "jobs.methods.listing",
    "list_artifacts": "jobs.upkeep.stores",
    "verify": "jobs.upkeep.stores",
    "pin": "jobs.upkeep.stores",
    "collect_garbage": "jobs.upkeep.stores",
    "remove_merge": "jobs.upkeep.stores",
    "copy_merge": "jobs.upkeep.stores",
    "upgrade_catalog": "jobs.upkeep.stores",
    "check_catalog": "jobs.upkeep.stores",
    "diagnose": "jobs.upkeep.doctor",
    "read_mergekit": "jobs.spec.mergekit",
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
