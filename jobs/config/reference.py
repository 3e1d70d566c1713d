"""The fields of job files and the settings of the configuration, as people look them up.

Read from the schemas beside this module, which ``schema`` makes from the definitions; so a look
costs neither pydantic nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tintray.errors import SpecError, nearest
from tintray.jobs.records import Record

FILES = {
    "job": "job files",
    "tasks": "files for `tintray add-task`",
    "configuration": "the configuration file",
}
"""What has a schema."""

CONFIGURATION = "configuration"
_WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "",
}


@dataclass(frozen=True)
class FieldNote(Record):
    """All that is to be known of one field, or of a section as a whole."""

    path: str  # fit.rounds, tasks.pool.split, configuration.store
    meaning: str
    type: str
    default: str  # as it is written in YAML; "required", or "" where it is left out
    values: str  # what it may be, "" where the type says all
    example: str
    section: bool = False


def schema_file(name: str) -> Path:
    """Where the schema of one of ``FILES`` lies."""
    return Path(__file__).resolve().with_name(f"{name}.schema.json")


def editor_line(name: str = "job") -> str:
    """The comment by which editors find the schema of a YAML file."""
    return f"# yaml-language-server: $schema={schema_file(name).as_uri()}"


@cache
def notes() -> tuple[FieldNote, ...]:
    """Every field, section by section: those of a job file, then the settings."""
    job, configuration = _schema("job"), _schema(CONFIGURATION)
    return (
        *_notes(job, job["$defs"], ""),
        FieldNote(CONFIGURATION, "What holds for this user on this machine.", "", "", "", "", True),
        *_notes(configuration, {}, f"{CONFIGURATION}."),
    )


def find(path: str = "") -> list[FieldNote]:
    """The fields of a section; one field, where ``path`` names one; all, where it is empty.

    Raises ``SpecError`` with the nearest name.
    """
    known = {note.path: note for note in notes()}
    if not path:
        return list(known.values())
    if path not in known:
        hint = nearest(path, known) or "; `tintray fields` lists all"
        raise SpecError(f"there is no section or field '{path}'{hint}")
    note = known[path]
    return [note, *_within(known.values(), path)] if note.section else [note]


def _within(every: Iterable[FieldNote], section: str) -> list[FieldNote]:
    return [note for note in every if note.path.startswith(f"{section}.")]


def _schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(schema_file(name).read_text(encoding="utf-8"))
    return found


def _notes(
    section: Mapping[str, Any], sections: Mapping[str, Any], above: str
) -> Iterator[FieldNote]:
    """Fields first, then the sections below."""
    below = []
    for name, field in section["properties"].items():
        inner = _section_in(field, sections)
        required = name in section.get("required", ())
        if inner is None:
            yield _note(above + name, field, required, False)
        else:
            field = {"description": inner.get("description", ""), **field}
            below.append((_note(above + name, field, required, True), inner))
    for note, inner in below:
        yield note
        yield from _notes(inner, sections, f"{note.path}.")


def _section_in(field: Mapping[str, Any], sections: Mapping[str, Any]) -> Any:
    """The section that a field holds, or a list of."""
    if "$ref" in field:
        return sections[field["$ref"].rpartition("/")[2]]
    items = field.get("items")
    inside = (*field.get("anyOf", ()), *([items] if isinstance(items, dict) else []))
    found = (_section_in(part, sections) for part in inside)
    return next((section for section in found if section is not None), None)


def _note(path: str, field: Mapping[str, Any], required: bool, section: bool) -> FieldNote:
    parts = field.get("anyOf", [field])
    values = [value for value in map(_values, parts) if value]
    default = field.get("x-default") or _written(field.get("default"))
    return FieldNote(
        path,
        field.get("description", ""),
        " or ".join(dict.fromkeys(word for word in map(_type, parts) if word)),
        "required" if required else default,
        "; ".join(dict.fromkeys(values)),
        _example(path, field),
        section,
    )


def _example(path: str, field: Mapping[str, Any]) -> str:
    name = path.rpartition(".")[2]
    choices = [value for value in _choices(field) if value != field.get("default")]
    values = field.get("examples") or choices
    if any(part.get("type") == "boolean" for part in field.get("anyOf", [field])):
        values = [not field.get("default")]
    if not values:
        return ""
    mark = " =" if path.startswith(CONFIGURATION) else ":"
    shown = json.dumps(values[0]) if path.startswith(CONFIGURATION) else _written(values[0])
    return f"{name}{mark} {shown}"


def _choices(part: Mapping[str, Any]) -> list[Any]:
    inside = [value for inner in part.get("anyOf", ()) for value in _choices(inner)]
    return [*part.get("enum", ()), *([part["const"]] if "const" in part else []), *inside]


def _type(part: Mapping[str, Any]) -> str:
    if "$ref" in part:
        return "section"
    if "enum" in part or "const" in part:
        return ""
    kind = part.get("type", "")
    if isinstance(kind, list):
        return " or ".join(_WORDS[one] for one in kind)
    if kind == "array":
        items = part["items"]
        return "[low, high]" if isinstance(items, list) else f"list of {_plural(_type(items))}"
    if kind == "object":
        return "section of names and values"
    return _WORDS.get(kind, "")


def _plural(word: str) -> str:
    return {"section": "sections", "text": "texts"}.get(word, "entries")


def _values(part: Mapping[str, Any]) -> str:
    """What is allowed, in words."""
    if chosen := _choices(part):
        return ", ".join(_written(value) for value in chosen)
    if "propertyNames" in part:
        return f"names: {', '.join(part['propertyNames']['enum'])}"
    if part.get("type") not in ("integer", "number"):
        return ""
    bounds = []
    if (least := part.get("minimum")) is not None and least > -(10**4):
        bounds.append(f"{least:g} or more")
    if (above := part.get("exclusiveMinimum")) is not None:
        bounds.append(f"above {above:g}")
    if (below := part.get("exclusiveMaximum")) is not None and below < 10**4:
        bounds.append(f"below {below:g}")
    if (most := part.get("maximum")) is not None and most < 10**4:
        bounds.append(f"at most {most:g}")
    return ", ".join(bounds)


def _written(value: Any) -> str:
    """A value as YAML has it, in one line."""
    if value is None:
        return ""
    if isinstance(value, str):
        marks = set(value) & set("{}[],&*#?|<>=!@`'\"") or ": " in f"{value} "
        plain = value and value.strip() == value and not marks and value[0] not in "%-"
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        inside = (f"{name}: {_written(inner)}" for name, inner in value.items())
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return json.dumps(value)


_PAGE = """\
# The job file, field by field

`python -m tintray.jobs.config.schema` writes this page from the definitions in
the modules named `*section*.py`, `job_file.py` and `settings.py` in `jobs/config/`.
`tintray fields` shows the same in a terminal:

    tintray fields                  # all
    tintray fields fit              # a section
    tintray fields tint.budget      # a field

A job file needs `name`, `base` and `tasks`. Relative paths in it start from its own folder.
`--set fit.rounds=50` lays a field over the file, `--set tasks.mnist.expert=PATH` one of the task of
that name. Where the file does not say, `recipe: fast` means `fit: {rounds: 60}`, and `recipe: best`
means `fit: {rounds: 3000, schedule: until_flat}`. [Method](method.md) and [data](data.md) explain
what the fields do, and [words](glossary.md) explains the words.

## How does my editor know the fields?

By a JSON schema. The first line of a YAML file says where that is:

    # yaml-language-server: $schema=file:///…/job.schema.json

`tintray fields --schema job` prints the schema of job files, `--schema tasks` that of files for
`tintray add-task`, and `--schema configuration` that of the configuration file. The site has them
too, for those without an installation: [job.schema.json](../jobs/config/job.schema.json),
[tasks.schema.json](../jobs/config/tasks.schema.json),
[configuration.schema.json](../jobs/config/configuration.schema.json).

Editors with the YAML language server or Taplo then complete names, show meanings and mark what is
wrong. They mark nothing that tintray accepts. They do not see what is wrong between two fields, or
with files that a field names; `tintray validate` does.
"""


def as_page() -> str:
    """The page of the documentation: a table for each section."""
    lines, fields = [_PAGE], [note for note in notes() if not note.section]
    shown: dict[tuple[str, ...], str] = {}  # the fields of a section -> the first that has them
    tops = [note for note in fields if "." not in note.path]
    lines += ["## The job\n", *_table(tops)]
    for section in (note for note in notes() if note.section):
        inside = [note for note in fields if note.path.rpartition(".")[0] == section.path]
        lines += [f"\n## `{section.path}`\n", section.meaning, *_about(section), ""]
        names = tuple(note.path.rpartition(".")[2] for note in inside)
        same = shown.setdefault(names, section.path)
        lines += _table(inside) if same == section.path else [f"Its fields are those of `{same}`."]
    return "\n".join(lines) + "\n"


def _about(section: FieldNote) -> list[str]:
    if section.path == CONFIGURATION:
        return [
            "Each setting is a line of `~/.config/tintray/config.toml`, or a variable, which goes",
            "first: `TINTRAY_STORE` for `store`. [Jobs](jobs.md#what-can-i-configure) has all of",
            "the order.",
        ]
    return [f"\n    {section.example}"] if section.example else []


def _table(fields: Sequence[FieldNote]) -> list[str]:
    rows = ["| field | meaning | type | default | example |", "|---|---|---|---|---|"]
    for note in fields:
        kind = ": ".join(filter(None, (note.type, note.values)))
        cells = [f"`{note.path.rpartition('.')[2]}`", note.meaning, kind]
        prose = note.default in ("", "none", "required") or note.default.count(" ") > 1
        cells += [note.default if prose else f"`{note.default}`"]
        cells += [f"`{note.example}`" if note.example else ""]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows
