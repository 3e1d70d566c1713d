"""What the commands answer with: plain frozen records, each with a JSON form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def plain(value: Any) -> Any:
    """``value`` in the types that JSON has; a number that is not finite becomes ``None``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class Record:
    """What every result shares: a JSON form with one key per field."""

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types, one key per field."""
        result: dict[str, Any] = plain(self)
        return result
