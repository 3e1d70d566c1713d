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
from pydantic_core import ErrorDetails

from tintray.errors import nearest
from tintray.jobs.config.documents import Document, Loc
from tintray.jobs.config.renamed import RENAMED
from tintray.storage.secrets import redact

# Errors that only follow from another one, which is reported itself.
_ECHOES = ("default_factory_not_called",)

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
    sentence = f"{document.origin(first['loc'])}: {_sentence(first, model, document.value)}"
    sentence = redact(sentence)
    if not others:
        return sentence
    named = list(dict.fromkeys(_dotted(other["loc"], document.value) for other in others))
    shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
    return f"{sentence} (and {len(others)} more: {shown})"


def _without_echoes(problems: list[ErrorDetails], model: type[BaseModel]) -> list[ErrorDetails]:
    """``problems`` less those that vanish when another one of them is mended."""
    misspelt = {
        (problem["loc"][:-1], _nearest_name(str(problem["loc"][-1]), problem["loc"], model))
        for problem in problems
        if problem["type"] == "extra_forbidden"
    }
    return [
        problem
        for problem in problems
        if problem["type"] not in _ECHOES
        and not (problem["type"] == "too_short" and problem["input"])  # its entries are at fault
        and not (
            problem["type"] == "missing" and (problem["loc"][:-1], problem["loc"][-1]) in misspelt
        )
    ]


def _sentence(problem: ErrorDetails, model: type[BaseModel], document: Any) -> str:
    loc, kind = problem["loc"], problem["type"]
    if not loc:
        return f"expected a job file of 'key: value' lines, found {_found(problem['input'])}"
    name = _dotted(loc, document)
    if kind in ("extra_forbidden", "invalid_key"):
        if (new := RENAMED.get(str(loc[-1]))) in _fields(loc, model):
            return f"{name}: renamed, write `{new}`"
        section = _dotted(loc[:-1], document) or "the job file"
        return f"'{name}' is not a field of {section}{_field_hint(loc, model)}"
    if kind == "missing":
        return f"{name} is missing: expected {_description(loc, model)}"
    context = problem.get("ctx", {})
    if kind == "value_error":
        return f"{name}: {context['error']}"
    if kind == "literal_error":
        choices = str(context["expected"])
        hint = nearest(
            str(problem["input"]), choices.replace("'", "").replace(" or ", ", ").split(", ")
        )
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
        if isinstance(name, str) and _WORD.fullmatch(name):
            steps.append(name)
        else:
            steps.append(str(step) if str(step).isprintable() else ascii(step))
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


def _model_at(loc: Loc, model: type[BaseModel]) -> type[BaseModel] | None:
    """The class of the section at ``loc``, None where there is none."""
    current: type[BaseModel] | None = model
    for step in loc:
        if isinstance(step, int):
            continue  # a list's entries are of the class that the list's field names
        info = current.model_fields.get(step) if current else None
        current = _section_class(info.annotation) if info else None
    return current


def _section_class(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as ``DataSpec | None`` or ``tuple[TaskSpec, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _section_class(argument)
        if found is not None:
            return found
    return None


def _nearest_name(name: str, loc: Loc, model: type[BaseModel]) -> str | None:
    if name in RENAMED:
        return RENAMED[name]
    near = difflib.get_close_matches(name, _fields(loc, model), n=1, cutoff=0.5)
    return near[0] if near else None


def _fields(loc: Loc, model: type[BaseModel]) -> list[str]:
    section = _model_at(loc[:-1], model)
    return list(section.model_fields) if section else []


def _field_hint(loc: Loc, model: type[BaseModel]) -> str:
    """The nearest field, or all of them where none is near."""
    fields = _fields(loc, model)
    return nearest(str(loc[-1]), fields) or f"; its fields are {', '.join(fields)}"


def _description(loc: Loc, model: type[BaseModel]) -> str:
    """What the missing field at ``loc`` is for, from its docstring."""
    section = _model_at(loc[:-1], model)
    info = section.model_fields.get(str(loc[-1])) if section else None
    text = (info.description if info else None) or "a value"
    return text[0].lower() + text[1:].removesuffix(".")
