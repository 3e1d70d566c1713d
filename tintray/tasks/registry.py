"""Every kind of task by its name."""

from __future__ import annotations

from tintray.errors import InputError
from tintray.tasks import classes, dense, texts, values
from tintray.tasks.kind import KINDS, Kind
from tintray.tasks.kinds import KindName

__all__ = ["KINDS", "classes", "dense", "find_kind", "texts", "values"]


def find_kind(name: KindName) -> Kind:
    """The kind of this name; InputError if there is none: it came from another version."""
    if name not in KINDS:
        raise InputError(
            f"there is no kind of task {name!r}; expected one of {', '.join(KINDS)}, is the merge "
            "of a later version of tintray?"
        )
    return KINDS[name]
