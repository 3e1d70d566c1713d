"""What the sections of a job file share: frozen, validated where defined, changed by one method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from tintray.errors import SpecError
from tintray.jobs.config.documents import Document
from tintray.jobs.config.errors import explain

MOST_OF_ANY, MOST_SCALE = 10**9, 10**6
MOST = {
    **dict.fromkeys(("seed", "memory"), 2**63),
    **dict.fromkeys(("batch_size", "micro_batch"), 10**6),
    **dict.fromkeys(("workers", "shards"), 10**5),
    "scale": MOST_SCALE,
    "threads_per_worker": 10**4,
}
"""The largest number that a field of any section may have, by its name."""


class Section(BaseModel):
    """What all sections share: frozen, no unknown fields, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _number_can_be_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Nobody means more, and what computes with it later counts in 32 bits or in float32."""
        most = MOST.get(info.field_name or "", MOST_OF_ANY)
        if isinstance(value, int | float) and abs(value) > most:
            raise ValueError(f"expected a number of at most {most:,}, found a larger one")
        return value

    def changed(self, **changes: Any) -> Self:
        """The same with other values: ``spec.changed(tint={"learned": False}, tasks=...)``.

        A mapping changes fields of a section; anything else takes the place of the field. What is
        then no valid section is a ``SpecError``.
        """
        return self.read(Document("the job", _laid_over(self, changes)))

    @classmethod
    def read(cls, document: Document, folder: Path | None = None) -> Self:
        """The section that a document holds; ``SpecError`` if a field of it cannot be used.

        Relative paths start from ``folder``; without one, locations are taken as they are.
        """
        try:
            return cls.model_validate(document.value, context=folder)
        except ValidationError as error:
            raise SpecError(explain(error, cls, document)) from error


def _laid_over(section: BaseModel, changes: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(section)
    for name, new in changes.items():
        old = values.get(name)
        if isinstance(old, BaseModel) and isinstance(new, Mapping):
            new = _laid_over(old, new)
        values[name] = new
    return values
