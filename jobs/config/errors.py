"""One sentence for what is wrong with a job file: where, what was expected, what was found.

pydantic finds every problem at once. The first one is told in full, the others are named. An
unknown field comes first: where ``experts`` was written for ``expert``, that it is misspelt says
more than that ``expert`` is missing.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tintray.errors import nearest
from tintray.jobs.config.documents import Document, Loc
from tintray.jobs.config.renamed import RENAMED
from tintray.storage.secrets import redact

_WORD = re.compile(r"\w[\w.-]*")  # what a task's name may look like inside a path

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "bool_type": "true or false",
    "tuple_type": "a list (each entry begins with '-')",
    "model_type": "a section of 'key: value' lines",
    "too_short": "at least one entry",
}
_BOUNDS = {
    "greater_than": "a number above {gt:.15g}",
    "greater_than_equal": "{ge} or more",
    "less_than": "a number below {lt}",
    "less_than_equal": "{le} or less",
}


def explain(error: ValidationError, model: type[BaseModel], document: Document) -> str:
    """The sentence for a ``document`` that ``model`` refused."""
    problems = _without_echoes(error.errors(include_url=False), model)
    problems.sort(key=lambda problem: problem["type"] not in ("extra_forbidden", "invalid_key"))
    first, *others = problems
    said = f"{document.origin(first['loc'])}: {_sentence(first, model, document.value)}"
    sentence = redact(said)
    if not others:
        return sentence
    named = list(dict.fromkeys(_dotted(other["loc"], document.value) for other in others))
    shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
    return f"{sentence} (and {len(others)} more: {shown})"


def _without_echoes(problems: list[ErrorDetails], model: type[BaseModel]) -> list[ErrorDetails]:
    """``problems`` less those that vanish when another one of them is mended."""
    misspelt = {
        (*problem["loc"][:-1], _nearest_name(problem["loc"], model))
        for problem in problems
        if problem["type"] == "extra_forbidden"
    }
    return [
        problem
        for problem in problems
        if problem["type"] != "default_factory_not_called"  # which follows from another one
        and not (problem["type"] == "too_short" and problem["input"])  # its entries are at fault
        and not (problem["type"] == "missing" and problem["loc"] in misspelt)
    ]


def _sentence(problem: ErrorDetails, model: type[BaseModel], document: Any) -> str:
    loc, kind = problem["loc"], problem["type"]
    if not loc:
        return f"expected a job file of 'key: value' lines, found {_found(problem['input'])}"
    name = _dotted(loc, document)
    fields = _fields(loc, model)
    if kind in ("extra_forbidden", "invalid_key"):
        if (new := RENAMED.get(str(loc[-1]))) in fields:
            return f"{name}: renamed, write `{new}`"
        section = _dotted(loc[:-1], document) or "the job file"
        hint = nearest(str(loc[-1]), fields) or f"; its fields are {', '.join(fields)}"
        return f"'{name}' is not a field of {section}{hint}"
    if kind == "missing":
        about = fields[str(loc[-1])].description or "a value"
        return f"{name} is missing: expected {about[0].lower()}{about[1:].removesuffix('.')}"
    context = problem.get("ctx", {})
    if kind == "value_error":
        return f"{name}: {context['error']}"
    if kind == "literal_error":
        choices = str(context["expected"])
        known = choices.replace("'", "").replace(" or ", ", ").split(", ")
        hint = nearest(str(problem["input"]), known)
        return f"{name}: expected {choices}, found {_found(problem['input'])}{hint}"
    expected = _EXPECTED.get(kind) or _BOUNDS.get(kind, "").format_map(context)
    found = _found(problem["input"])
    if expected == "text" and isinstance(problem["input"], int | float):
        found += "; put it in quotes"
    return f"{name}: expected {expected or problem['msg']}, found {found}"


def _dotted(loc: Loc, document: Any) -> str:
    """``loc`` as a path, a task called by its name: ``tasks.mnist.pool.split``."""
    steps, value = [], document
    for step in loc:
        inner: Any = None
        if isinstance(value, Mapping):
            inner = value.get(step)
        elif isinstance(value, list | tuple) and isinstance(step, int) and step < len(value):
            inner = value[step]
        name = inner.get("name") if isinstance(step, int) and isinstance(inner, Mapping) else None
        called = isinstance(name, str) and _WORD.fullmatch(name)
        shown = str(step) if str(step).isprintable() else ascii(step)
        steps.append(str(name) if called else shown)
        value = inner
    return ".".join(steps)


def _found(value: Any) -> str:
    """``value`` in the words of a job file, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a section" if value else "an empty section"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = 80
    return shortened.repr(value)


def _fields(loc: Loc, model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The fields of the section that the last step of ``loc`` is in; none where there is none."""
    fields = _fields_of(model)
    for step in loc[:-1]:
        if isinstance(step, str):  # a list's entries are of the class that the list's field names
            fields = _fields_of(fields[step].annotation) if step in fields else {}
    return fields


def _fields_of(annotation: Any) -> Mapping[str, FieldInfo]:
    """Those of the model in an annotation such as ``DataSpec | None``, ``tuple[TaskSpec, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields
    inside = map(_fields_of, typing.get_args(annotation))
    return next(filter(None, inside), {})


def _nearest_name(loc: Loc, model: type[BaseModel]) -> str | None:
    name = str(loc[-1])
    near = difflib.get_close_matches(name, _fields(loc, model), n=1, cutoff=0.5)
    return RENAMED.get(name) or (near[0] if near else None)
