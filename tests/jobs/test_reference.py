"""The reference of fields: schemas, page and command say what tintray accepts, and nothing else."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.answers import call
from tests.tiny_zoo import TinyZoo
from tintray.errors import SpecError
from tintray.jobs.config import reference
from tintray.jobs.config.job_file import JobSpec, parse_spec
from tintray.jobs.config.reference import FILES, FieldNote, notes, schema_file
from tintray.jobs.config.schema import SCHEMAS, write
from tintray.jobs.config.settings import SETTINGS, config_file, limits, write_config
from tintray.jobs.config.yaml_text import parse_yaml
from tintray.jobs.runs.change import read_tasks

ROOT = Path(__file__).parents[2]
FIELDS = {note.path: note for note in notes() if not note.path.startswith("configuration")}
NAMES_OF_THINGS = ("base", "tasks.expert", "tasks.pool.path", "tasks.test.path", "catalog",
                   "merge.method", "merge.init")  # fmt: skip
STRANGE = [None, True, "x", "", -1, 0, 0.5, 3, 10**12, [], [2, 1], ["head", "head"], {}, {"x": 1}]


@cache
def validator(name: str) -> Any:
    schema = json.loads(schema_file(name).read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """The example of each required field, twice; what they name is there, and the user too."""
    for name in ("zoo/base", "zoo/mnist", "data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/mnist.npz").touch()
    data = {"path": "data/mnist.npz"}
    task = {"expert": "zoo/mnist", "pool": data, "kind": "depth", "zero_shot": {}}
    task["test"] = data | {"split": "test"}
    tasks = [{"name": name, **task} for name in ("one", "two")]
    tint: dict[str, Any] = {"sites": [{"site": "head"}]}
    return {"name": "ten", "base": "zoo/base", "tasks": tasks, "tint": tint,
            "tracking": {"tracker": "mlflow"}}  # fmt: skip


def with_field(job: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The job with a field set: of its first task, or site, where there are several."""
    changed: dict[str, Any] = json.loads(json.dumps(job))
    *sections, field = path.split(".")
    inner: Any = changed
    for name in sections:
        inner = inner.setdefault(name, {})
        inner = inner[0] if isinstance(inner, list) else inner
    inner[field] = value
    return changed


def accepted(job: dict[str, Any], folder: Path) -> bool:
    try:
        parse_spec(job, folder=folder)
    except SpecError:
        return False
    return True


def test_schemas_and_page_are_those_of_the_definitions(tmp_path: Path) -> None:
    """Else: ``python -m tintray.jobs.config.schema`` writes them anew."""
    write(tmp_path, tmp_path / "job-file.md")
    for name in FILES:
        written = schema_file(name)
        assert (tmp_path / written.name).read_text() == written.read_text(), name
    assert (tmp_path / "job-file.md").read_text() == (ROOT / "docs/job-file.md").read_text()


@pytest.mark.parametrize("note", FIELDS.values(), ids=FIELDS)
def test_each_field_is_told_in_full_with_an_example_that_is_accepted(
    note: FieldNote, job: dict[str, Any], tmp_path: Path
) -> None:
    assert note.meaning.endswith(".")
    if note.section and not note.example:
        return
    assert note.type or note.values
    field, value = parse_yaml(note.example)[1].popitem()
    assert note.path.endswith(field)
    value = "sqlite:///x.db" if field == "catalog" else value
    changed = with_field(job, note.path, value)
    if note.path == "merge.parameters":
        changed["merge"]["init"] = "ties"  # whose parameter it is
    if note.path == "tasks.pool":
        del changed["tasks"][0]["test"]
    assert accepted(changed, tmp_path)
    validator("job").validate(changed)


@pytest.mark.parametrize("path", FIELDS)
def test_an_editor_marks_only_what_tintray_refuses_and_all_of_it_but_what_has_reasons(
    path: str, job: dict[str, Any], tmp_path: Path
) -> None:
    """``jsonschema`` reads the schema, so that another program than tintray judges it."""
    unseen = []
    for value in STRANGE:
        changed = with_field(job, path, value)
        marked, taken = not validator("job").is_valid(changed), accepted(changed, tmp_path)
        assert not (marked and taken), value
        if not marked and not taken:
            unseen.append(value)
    # Texts that have a grammar, that name what is not there, or what another field forbids.
    reasons: dict[str, list[Any]] = {
        **{name: ["x", ""] for name in NAMES_OF_THINGS},
        "store": [""],
        "tasks.zero_shot.templates": [["head", "head"]],
        "tasks.zero_shot.classes": [["head", "head"]],
        "merge.parameters": [{"x": 1}],
        "merge.bounds": [[2, 1]],
        "tint.sites": [["head", "head"]],
        "fit.groups": [3],
        "tracking.to": ["x", ""],
    }
    assert unseen == reasons.get(path, []), path


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda f: f.name)
def test_the_examples_are_valid_and_name_their_schema(file: Path) -> None:
    text = file.read_text()
    validator("job").validate(yaml.safe_load(text))
    named = re.match(r"# yaml-language-server: \$schema=(.+)\n", text)
    assert named and (file.parent / named[1]).resolve() == schema_file("job")


def test_the_readme_and_recorded_jobs_are_valid(tiny: TinyZoo, tmp_path: Path) -> None:
    spec = tiny.spec(tmp_path / "store")
    validator("job").validate(spec.record())
    assert JobSpec.from_record(spec.record()) == spec


@pytest.mark.parametrize(
    "value",
    [
        {"name": "a", "expert": "zoo/mnist", "pool": {"path": "data/mnist.npz"}},
        [{"name": "a", "expert": "zoo/mnist", "pool": {"path": "data/mnist.npz"}}],
        {"name": "x", "tasks": [{"name": "a", "expert": "zoo/mnist", "pool": {"path": "data"}}]},
        [],
        {"tasks": []},
        {"name": "a", "expert": "zoo/mnist"},
        {"name": "a", "expert": "zoo/mnist", "pool": {"path": "data"}, "kid": 1},
        "x",
    ],
)
def test_tasks_files_are_marked_as_they_are_refused(
    value: Any, job: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text(yaml.safe_dump(value))
    if validator("tasks").is_valid(value):
        assert read_tasks(file)
    else:
        with pytest.raises(SpecError):
            read_tasks(file)


def test_the_example_of_each_setting_is_accepted_and_the_schema_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINTRAY_CONFIG", str(tmp_path / "config.toml"))
    told = [note for note in notes() if note.path.startswith("configuration.")]
    assert [note.path.partition(".")[2] for note in told] == list(SETTINGS)
    config_file().write_text("\n".join(note.example for note in told))
    assert limits().max_pool_bytes == 8 << 30
    validator("configuration").validate(tomllib.loads(config_file().read_text()))
    write_config({"store": str(tmp_path)}, replace=True)
    first = config_file().read_text().splitlines()[0]
    assert first == f"#:schema {schema_file('configuration').as_uri()}"
    for wrong in ({"stor": "x"}, {"store": True}, {"max_examples": [1]}):
        assert not validator("configuration").is_valid(wrong)


def test_the_command_finds_sections_fields_and_what_was_meant() -> None:
    assert call("fields", "fit.rounds", "--json").document == [
        reference.find("fit.rounds")[0].to_json()
    ]
    assert len(call("fields", "--json").document) == len(notes())
    assert {note["path"] for note in call("fields", "tint", "--json").document} >= {
        "tint", "tint.budget", "tint.sites", "tint.sites.rank"}  # fmt: skip
    said = call("fields", "fit.rounds").out
    assert all(word in said for word in ("How many rounds", "whole number", "1 or more", "300"))
    assert "did you mean 'fit.rounds'?" in call("fields", "fit.rouns").sentence
    assert json.loads(call("fields", "--schema", "job").out) == SCHEMAS["job"]()
    assert call("fields", "fit", "--schema", "job").code == 2
