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
    from jobs.spec import JobSpec, load_spec, parse_spec
    from tintray.bundle import Merge
    from tintray.errors import TintrayError

__all__ = [
    "JobSpec",
    "Merge",
    "TintrayError",
    "compare",
    "evaluate",
    "export",
    "list_merges",
    "load",
    "load_spec",
    "parse_spec",
    "run",
    "show",
    "validate",
]

_HOME = {
    "JobSpec": "jobs.spec",
    "load_spec": "jobs.spec",
    "parse_spec": "jobs.spec",
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
