"""What a catalog's value may be: another program may have written it. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from tintray.errors import StorageError

NUMBER = (int, float)
_NUMBERS = (*NUMBER, {None: NUMBER})
METRICS = {
    "tasks": int,
    "average": NUMBER,
    "normalised_accuracy": NUMBER,
    "loss": NUMBER,
    "method": str,
    "site": str,
    "metric": str,
    "agreement": _NUMBERS,
    "kept": _NUMBERS,
    "held_back": _NUMBERS,
    "change": {"operation": str, "mode": str, "to": str, "tasks": [str]},
}
"""The shape of the metrics of a merge or a round: what commands show of them is checked."""


def no_value(value: object) -> StorageError:
    """What is said of a value that cannot be where it was found."""
    return StorageError(
        f"the catalog holds {value!r:.80} where something else belongs: another program wrote it, "
        "or its file is damaged; restore it from a copy"
    )


def fits(value: Any, shape: Any) -> bool:
    """Whether a value is of a shape, or None.

    A shape is a type, several shapes, a list of one shape, or a mapping of names to shapes, in
    which None stands for all other names; names that it does not know hold anything.
    """
    if value is None:
        return True
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        others = shape.get(None, object)
        return isinstance(value, dict) and all(
            fits(item, shape.get(name, others)) for name, item in value.items()
        )
    return isinstance(value, shape)
