"""Data as users have it: files, folders and hub names, read into examples and into labels.

Inputs and labels are read by different functions, and the one for inputs never opens a label: what
a fit sees of an adaptation pool cannot depend on its labels.

Imported when it is used: a job file needs to know what a ``DataSource`` is, and no torch for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tintray.data.labels import Answers, check_class_names, class_names, read_labels
    from tintray.data.reading import Examples, read_examples
    from tintray.data.source import DataSource

__all__ = [
    "Answers",
    "DataSource",
    "Examples",
    "check_class_names",
    "class_names",
    "read_examples",
    "read_labels",
]

_HOME = {
    "Answers": "labels",
    "check_class_names": "labels",
    "class_names": "labels",
    "read_labels": "labels",
    "DataSource": "source",
    "Examples": "reading",
    "read_examples": "reading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tintray.data' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tintray.data.{_HOME[name]}"), name)
