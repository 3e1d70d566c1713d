"""What a request asks: JSON or a form, read into tasks and inputs; nothing of it is trusted."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tintray.errors import InputError
from tintray.jobs.serving.options import ServeOptions
from tintray.jobs.serving.replica import Example

FORMS = ("image", "text", "words", "array")
_KEYS = {*FORMS, "text_pair", "task"}
_DATA = ";base64,"


def from_json(body: bytes, task: str | None, options: ServeOptions) -> list[Example]:
    """The examples in ``{"inputs": [{"image": "<base64>"}, …]}``.

    ``task`` is the one that the path names; without it each input has its own.

    Raises InputError, naming the input.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not valid JSON ({str(error)[:100]})") from error
    inputs = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(inputs, list) or not inputs:
        raise InputError('expected a body such as {"inputs": [{"text": "…"}]}, with one or more')
    if unknown := document.keys() - {"inputs"}:
        raise InputError(f"expected the field inputs alone, found {sorted(unknown)[0]!r:.60} too")
    _check_count(len(inputs), options)
    return [_example(one, task, f"inputs[{number}]") for number, one in enumerate(inputs)]


def _check_count(count: int, options: ServeOptions) -> None:
    if count > options.max_examples:
        raise InputError(
            f"the request has {count:,} inputs, and one may have {options.max_examples:,}; send "
            "several requests"
        )


def _example(one: Any, task: str | None, where: str) -> Example:
    if not isinstance(one, dict):
        raise InputError(f"{where}: expected an object with {', '.join(FORMS)}, found {one!r:.40}")
    if unknown := one.keys() - _KEYS:
        raise InputError(
            f"{where}: expected {', '.join(sorted(_KEYS))}, found {min(unknown)!r:.60}"
        )
    named = one.get("task", task)
    if not isinstance(named, str):
        raise InputError(f'{where}: expected "task", the name of a task')
    if task is not None and named != task:
        raise InputError(f"{where}: the path names the task {task!r:.60}, the input {named!r:.60}")
    given = [form for form in FORMS if form in one]
    if len(given) != 1:
        raise InputError(f"{where}: expected one of {', '.join(FORMS)}, found {len(given)}")
    return named, _value(given[0], one, where)


def _value(form: str, one: Mapping[str, Any], where: str) -> Any:
    value = one[form]
    if form == "image":
        return _decoded(value, where)
    if form == "text" and "text_pair" in one:
        return [value, one["text_pair"]]
    if form == "text" and not isinstance(value, str):
        raise InputError(f"{where}.text: expected a text, found {value!r:.40}")
    if form in ("words", "array") and not isinstance(value, list):
        raise InputError(f"{where}.{form}: expected a list, found {value!r:.40}")
    return value


def _decoded(value: Any, where: str) -> bytes:
    if not isinstance(value, str):
        raise InputError(f"{where}.image: expected base64, found {value!r:.40}")
    if value.startswith("data:") and _DATA in value[:100]:  # as a browser reads a file
        value = value[value.index(_DATA) + len(_DATA) :]
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where}.image: it is not valid base64 ({error})") from error


def from_form(
    fields: Sequence[tuple[str, str | bytes]], task: str | None, options: ServeOptions
) -> list[Example]:
    """The examples in the fields ``image`` and ``text`` of a form, in their order.

    Without ``task`` each has a field ``task`` before it. Raises InputError, naming the field.
    """
    examples: list[Example] = []
    named = task
    for name, value in fields:
        if name == "task" and isinstance(value, str) and task is None:
            named = value
        elif name not in ("image", "text"):
            raise InputError(f"expected the fields image and text, found {name!r:.60}")
        elif (name == "image") != isinstance(value, bytes):
            form = "a file" if name == "image" else "a text"
            raise InputError(f"field {name}: expected {form}")
        elif named is None:
            raise InputError(f"field {name}: expected a field task before it")
        else:
            examples.append((named, value))
    if not examples:
        raise InputError("the form has no field image and no field text")
    _check_count(len(examples), options)
    return examples
