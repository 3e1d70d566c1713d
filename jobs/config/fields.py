"""The types that fields of the job file have beyond numbers and texts: names, locations, pairs.

Each says to JSON schemas what it accepts before it is made into what the code uses.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from tintray.jobs.config import locations
from tintray.jobs.config.locations import Location
from tintray.limits import memory_bytes, parse_budget

MAX_NAME = 100  # names become file names, with a suffix and a temporary prefix beside them
_FILE_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_SIZE = r"\d+(\.\d+)? ?([kKmMgGtT][iI]?[bB]|[bB])"
_AMOUNT = rf"\d+(\.\d+)? ?%|\d[\d_,]* numbers?|{_SIZE}"


def _located(resolve: Callable[[str, Path], Location]) -> PlainValidator:
    """Text to ``Location``; relative paths start from the folder that is the context of validation.

    Without one the text is taken as resolved.
    """

    def validate(value: object, info: ValidationInfo) -> Location:
        if not isinstance(value, str):
            raise PydanticCustomError("string_type", "expected text")
        if isinstance(value, Location):
            return value
        return resolve(value, info.context) if info.context else Location(value)

    return PlainValidator(validate, json_schema_input_type=str)


def _file_name(value: str) -> str:
    """Refuse what cannot be part of a path in every store."""
    if not _FILE_NAME.fullmatch(value):
        raise ValueError(
            "expected a letter or digit followed by letters, digits, '.', '_' or '-', at most "
            f"{MAX_NAME} in all (it becomes a file name), found {reprlib.repr(value)}"
        )
    return value


def _pair(value: object) -> object:
    """[low, high] as a tuple, the form that strict validation wants."""
    if value is None:
        return None
    if isinstance(value, list | tuple) and len(value) == 2:
        low, high = value
        if all(type(x) in (int, float) for x in value) and low < high:
            return (float(low), float(high))
    raise ValueError(
        f"expected two numbers [low, high] with low below high, found {reprlib.repr(value)}"
    )


def _or(
    word: str, expected: str, fits: Callable[[Any], bool], accepted: Any, *, none: bool = False
) -> BeforeValidator:
    """A number or a word, with one sentence for both where pydantic would give one for each."""

    def validate(value: object) -> object:
        if (
            value == word
            or (none and value is None)
            or (type(value) in (int, float) and fits(value))
        ):
            return value
        raise ValueError(f"expected {expected}, or '{word}', found {reprlib.repr(value)}")

    return BeforeValidator(validate, json_schema_input_type=accepted)


_auto_or = partial(_or, "auto")


def _count(least: int) -> BeforeValidator:
    expected = f"a whole number, {least} or more"
    accepted = Annotated[int, Field(ge=least)] | Literal["auto"]
    return _auto_or(expected, lambda value: type(value) is int and value >= least, accepted)


def _budget(value: object) -> str:
    """A share, a size or a count, as it is written."""
    if isinstance(value, str):
        with suppress(ValueError):
            parse_budget(value)
            return value
    raise ValueError(
        "expected a share of the backbone's bytes (0.5%), a size (300KiB) or a count "
        f"(2000 numbers), found {reprlib.repr(value)}"
    )


def _text(pattern: str) -> Any:
    return Annotated[str, Field(pattern=rf"^\s*({pattern})\s*$")]


Budget = Annotated[str, BeforeValidator(_budget, json_schema_input_type=_text(_AMOUNT))]
Name = Annotated[
    str,
    AfterValidator(_file_name),
    WithJsonSchema({"type": "string", "pattern": f"^{_FILE_NAME.pattern}$"}),
]
ModelLocation = Annotated[Location, _located(locations.model_location)]
DataLocation = Annotated[Location, _located(locations.data_location)]
StoreLocation = Annotated[Location, _located(locations.store_location)]
CatalogLocation = Annotated[Location, _located(locations.catalog_location)]
TrackingLocation = Annotated[Location, _located(locations.tracking_location)]
Bounds = Annotated[tuple[float, float] | None, BeforeValidator(_pair)]
Memory = Annotated[
    int,
    BeforeValidator(
        memory_bytes, json_schema_input_type=Annotated[int, Field(ge=1)] | _text(_SIZE)
    ),
]
Threshold = Annotated[
    float | Literal["auto"],
    _auto_or(
        "a number from 0 to 1",
        lambda value: 0 <= value <= 1,
        Annotated[float, Field(ge=0, le=1)] | Literal["auto"],
    ),
]
Scale = Annotated[
    float | Literal["own"] | None,
    _or(
        "own",
        "a number above 0",
        lambda value: value > 0,
        Annotated[float, Field(gt=0)] | Literal["own"] | None,
        none=True,
    ),
]
Rate = Annotated[
    float | Literal["auto"],
    _auto_or(
        "a number, 0 or more",
        lambda value: value >= 0,
        Annotated[float, Field(ge=0)] | Literal["auto"],
    ),
]
ShardCount = Annotated[int | Literal["auto"], _count(1)]
WorkerCount = Annotated[int | Literal["auto"], _count(0)]
