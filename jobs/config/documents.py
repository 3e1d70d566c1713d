"""YAML documents that remember their lines, and the ``key.path=value`` overrides laid over them.

What cannot be used is a ``SpecError`` with its line and column, or the override that it is of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tintray.errors import SpecError, nearest
from tintray.files import open_regular
from tintray.jobs.config import settings
from tintray.jobs.config.locations import names_in
from tintray.jobs.config.yaml_text import parse_yaml
from tintray.limits import Limits
from tintray.storage.secrets import redact

Loc = tuple[str | int, ...]  # where a value is: ("tasks", 0, "pool", "split")


@dataclass(frozen=True)
class Document:
    """A parsed job file: its value, and where each part of it was written."""

    source: str  # the file's name, as the user gave it
    value: Any
    root: yaml.Node | None = None
    overrides: tuple[tuple[Loc, str], ...] = field(default=())  # (where, the option's text)

    def origin(self, loc: Loc) -> str:
        """Who is to blame for ``loc``: ``"jobs/x.yaml, line 7"``, or the override that set it."""
        for where, text in reversed(self.overrides):
            if loc[: len(where)] == where:
                return f"--set {text}"
        line = _line(self.root, loc)
        if line is not None:
            return f"{self.source}, line {line}"
        below = [text for where, text in self.overrides if where[: len(loc)] == loc]
        return f"--set {below[-1]}" if below else self.source

    def override(self, text: str) -> Document:
        """This document with the field that ``text`` names (``key.path=value``) set.

        A task is named by its name or its index. Sections on the way that are not there are made.
        """
        path, equals, written = text.partition("=")
        text = redact(text)  # from here on it is only shown
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise SpecError(
                f"--set {text}: expected key.path=value, such as fit.rounds=50 or "
                f"tasks.mnist.expert=zoo/mnist, found {text!r}"
            )
        try:
            _, value = parse_yaml(written)
        except yaml.YAMLError as error:
            raise SpecError(
                f"--set {text}: expected a YAML value after '=', found {redact(written)!r}"
                f" ({_problem(error)})"
            ) from error
        try:
            changed, loc = _changed(self.value, keys, value)
        except ValueError as error:
            raise SpecError(redact(f"--set {text}: {error}")) from error
        return Document(self.source, changed, self.root, (*self.overrides, (loc, text)))


def read_document(path: Path, what: str = "a job file", limits: Limits | None = None) -> Document:
    """The YAML document in the file ``path``; messages call it ``what``.

    It holds plain values only, and no more of them than ``limits`` allow (left out, those of the
    configuration).
    """
    limits = settings.limits() if limits is None else limits
    text = _read_text(path, what, limits)
    try:
        root, value = parse_yaml(text, limits)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{path}{where}: not valid YAML: {_problem(error)}") from error
    if root is None:
        raise SpecError(f"{path}: expected {what}, found an empty file")
    return Document(str(path), value, root)


def _read_text(path: Path, what: str, limits: Limits) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(limits.max_yaml_bytes + 1)
    except FileNotFoundError as error:
        hint = nearest(path.name, names_in(path.parent))
        raise SpecError(f"{path}: expected {what}, found none{hint}") from error
    except IsADirectoryError as error:
        raise SpecError(f"{path}: expected {what}, found a folder") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"{path}: expected {what} that can be read ({reason})") from error
    if len(data) > limits.max_yaml_bytes:
        raise SpecError(
            f"{path}: expected {what}, found more bytes than max_yaml_bytes allows "
            f"({limits.max_yaml_bytes:,})"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path}: expected text in UTF-8, found byte 0x{data[error.start]:02x} at position "
            f"{error.start}"
        ) from error


def _problem(error: Exception) -> str:
    """What PyYAML says, in one line."""
    said = str(error).partition("\n")[0]
    if isinstance(error, yaml.MarkedYAMLError):
        said = " ".join(filter(None, (error.context, error.problem)))
    return " ".join(said.split()) or "it cannot be parsed"


def _line(node: yaml.Node | None, loc: Loc) -> int | None:
    """The line on which the deepest part of ``loc`` that the document has begins."""
    line = None
    for step in loc:
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == str(step)]
        elif isinstance(node, yaml.SequenceNode):
            pairs = [(item, item) for index, item in enumerate(node.value) if index == step]
        if not pairs:
            break
        line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
    return line


def _changed(value: Any, keys: Sequence[str], new: Any) -> tuple[Any, Loc]:
    """A copy of ``value`` with ``new`` at ``keys``, and where that is.

    Only what lies on the path is copied, and nothing is changed in place: a YAML anchor may have
    put the same mapping elsewhere too.
    """
    if not keys:
        return new, ()
    if isinstance(value, list):
        index, rest = _item(value, keys)
        changed, loc = _changed(value[index], rest, new)
        return [*value[:index], changed, *value[index + 1 :]], (index, *loc)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"expected a section before '.{keys[0]}', found {value!r}")
    section = dict(value or {})
    changed, loc = _changed(section.get(keys[0]), keys[1:], new)
    return {**section, keys[0]: changed}, (keys[0], *loc)


def _item(items: list[Any], keys: Sequence[str]) -> tuple[int, Sequence[str]]:
    """The index of the item that ``keys`` begin with, by name or by number, and what follows it.

    A name may hold dots itself, so the longest one that fits is taken.
    """
    names = [item.get("name") if isinstance(item, Mapping) else None for item in items]
    for length in range(len(keys), 0, -1):
        name = ".".join(keys[:length])
        if name in names:
            return names.index(name), keys[length:]
    if keys[0].isdecimal() and int(keys[0]) < len(items):
        return int(keys[0]), keys[1:]
    hint = nearest(keys[0], [name for name in names if isinstance(name, str)])
    raise ValueError(
        f"expected the name of a task, or an index below {len(items)}, found '{keys[0]}'{hint}"
    )
