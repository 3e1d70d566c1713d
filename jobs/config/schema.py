"""JSON schemas of job files, tasks files and the configuration file, made from their definitions.

``python -m tintray.jobs.config.schema`` writes them beside this module, where editors and
``tintray fields`` read them, and the page of the documentation that shows the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.merge_sections import ADAMERGING, SURGERY, TINT
from tintray.jobs.config.reference import FILES, as_page, schema_file
from tintray.jobs.config.section import MOST, MOST_OF_ANY
from tintray.jobs.config.settings import SETTINGS, SettingNote
from tintray.jobs.config.task_sections import TaskSpec
from tintray.merging import methods

DIALECT = "http://json-schema.org/draft-07/schema#"  # what editors know best
_LEARNED = (TINT, *ADAMERGING, SURGERY)


def job_schema() -> dict[str, Any]:
    """Of a job file: what tintray accepts, and what is wrong between two fields alone."""
    schema = _of_models(JobSpec)
    for name, field in schema["properties"].items():
        if name not in schema["required"]:  # `fit:` with every field commented out
            schema["properties"][name] = {
                **{key: field.pop(key) for key in _NOTES if key in field},
                "anyOf": [*field.pop("anyOf", [field] if field else []), {"type": "null"}],
            }
    merge = schema["$defs"]["MergeSpec"]["properties"]
    names = list(methods())
    for field, known in (("method", [*_LEARNED, *names]), ("init", ["base", *names])):
        del merge[field]["type"]  # a plugin's method has a name that is not known here
        merge[field]["anyOf"] = [{"enum": known}, {"type": "string"}]
    return _titled("A job file of tintray", schema)


def tasks_schema() -> dict[str, Any]:
    """Of a file for ``tintray add-task``: one task, a list of tasks, or what has ``tasks``."""
    schema = _of_models(TaskSpec)
    definitions = schema.pop("$defs")
    task: dict[str, Any] = {"$ref": "#/$defs/TaskSpec"}
    tasks = {"type": "array", "minItems": 1, "items": task}
    whole = {"type": "object", "required": ["tasks"], "properties": {"tasks": tasks}}
    return _titled(
        "Tasks to add to a merge of tintray",
        {"anyOf": [task, tasks, whole], "$defs": {"TaskSpec": schema, **definitions}},
    )


def configuration_schema() -> dict[str, Any]:
    """Of the configuration file, read as TOML; a number may be written as a text too."""
    fields = {name: _setting(name, note) for name, note in SETTINGS.items()}
    closed = {"type": "object", "additionalProperties": False, "properties": fields}
    return _titled("The configuration file of tintray", closed)


SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "job": job_schema,
    "tasks": tasks_schema,
    "configuration": configuration_schema,
}
assert SCHEMAS.keys() == FILES.keys()

_NOTES = ("description", "default", "examples")


def _titled(title: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": DIALECT, "title": title, **schema}


def _setting(name: str, note: SettingNote) -> dict[str, Any]:
    kinds = ["string"] if isinstance(note.example, str) else ["integer", "string"]
    if name == "lease_seconds":
        kinds = ["number", "string"]
    elif name == "require_signed":
        kinds = ["boolean", "string"]
    elif name.endswith("_bytes"):
        kinds = ["string", "integer"]
    about = {"description": note.meaning, "examples": [note.example], "x-default": note.default}
    return {"type": kinds, **about}


def _of_models(model: Any) -> dict[str, Any]:
    """The schema of a section and those below it, without what says nothing to an editor."""
    _, found = models_json_schema([(model, "validation")])
    definitions = {name: _tidied(section) for name, section in found["$defs"].items()}
    return {**definitions.pop(model.__name__), "$defs": definitions}


def _tidied(section: dict[str, Any]) -> dict[str, Any]:
    section.pop("title")
    for name, field in section["properties"].items():
        field.pop("title", None)
        if "description" in field:
            field["description"] = " ".join(field["description"].split())
        if isinstance(field.get("default"), dict) and field["default"]:
            del field["default"]  # of a section: its fields have their own
        for part in [field, *field.get("anyOf", ())]:
            if "prefixItems" in part:
                part["items"] = part.pop("prefixItems")  # as draft 7 calls it
            if part.get("type") in ("integer", "number"):
                most = MOST.get(name, MOST_OF_ANY)
                part.setdefault("maximum", most)
                if "minimum" not in part and "exclusiveMinimum" not in part:
                    part["minimum"] = -most
    return section


def write(schemas: Path, page: Path) -> None:
    """Write the schemas into one folder, and the page."""
    for name, make in SCHEMAS.items():
        text = json.dumps(make(), indent=1, ensure_ascii=False)
        (schemas / schema_file(name).name).write_text(text + "\n", encoding="utf-8")
    page.write_text(as_page(), encoding="utf-8")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    write(here, here.parents[1] / "docs/job-file.md")
