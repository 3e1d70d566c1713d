"""What reaches a terminal: of names, reasons and logs nothing that a terminal would act upon."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import pkgutil
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from tests import conftest
from tintray.errors import printable, printable_lines
from tintray.jobs import cli
from tintray.jobs.cli import serving_tables, watching_tables
from tintray.jobs.cli.options import say, write
from tintray.jobs.display.progress import PlainProgress
from tintray.jobs.display.terminal import SafeConsole, escaped, open_console
from tintray.jobs.events import Evaluated, Notice, PhaseStarted, Published
from tintray.jobs.records import Record
from tintray.published.card import model_card
from tintray.published.merge import open_folder

NASTY = "\x1b]0;OWNED\x07\x1b[2J\x1b[31mred\r\nforged line\x9b1m\u202egnp\u2028\u2066\x7f\x00\ud800"
ACTED_UPON = {"Cc", "Cf", "Cs", "Zl", "Zp"}

MODULES = [
    importlib.import_module(f"tintray.jobs.cli.{module.name}")
    for module in pkgutil.iter_modules(cli.__path__)
    if module.name.endswith("tables")
]
RENDERERS = [
    function
    for module in MODULES
    for name, function in vars(module).items()
    if name.startswith("print_") and function.__module__ == module.__name__
]
assert len(RENDERERS) > 30
_FIGURES = dict.fromkeys(("examples", "batches", "requests", "failed", "queued"), 3)
_LIVE = {"version": NASTY, "tints": dict.fromkeys(("hits", "misses", "tasks", "bytes"), 3)}
_SIDES = dict.fromkeys(("stable", "candidate", "stable_agreement", "candidate_agreement"), 0.5)
DOCUMENTS: Mapping[Any, Any] = {
    watching_tables.print_checks: [
        dict.fromkeys(("at", "merge", "task", "data"), NASTY)
        | {"examples": 3, "alpha": 0.5, "estimate": {"value": 0.5}}
        | {"differences": [{"of": NASTY, "adjusted": 0.0}]}
    ],
    serving_tables.print_status: {
        "stable": _LIVE | _FIGURES,
        "candidate": _LIVE | _FIGURES,
        "canary": 0.5,
        "pinned": False,
        "refused": {NASTY: NASTY},
        "tasks": [{"task": NASTY, "metric": NASTY, **_SIDES}],
    },
}
"""What is shown of documents that are no records: entries of a catalog, a server's answer."""


def made(kind: Any, depth: int = 0) -> Any:
    """A value of a type, every text in it full of escapes."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union or type(kind).__name__ == "UnionType":
        return made(inside[0], depth)
    if origin is typing.Literal:
        return inside[0]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {made(inside[0], depth): made(inside[1], depth)}
    if origin is tuple:
        return tuple(made(part, depth) for part in inside if part is not ...)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return [made(inside[0], depth)]
    if is_dataclass(kind):
        known = {**vars(inspect.getmodule(kind)), **for_types_alone(kind)}
        hints = typing.get_type_hints(kind, known)
        return kind(**{f.name: made(hints[f.name], depth + 1) for f in fields(kind) if f.init})
    return {str: NASTY, int: 3, float: 0.5, bool: True, Any: NASTY}[kind]


def for_types_alone(made: Any) -> dict[str, Any]:
    """What the module of a function or a class imports for a type checker alone."""
    module = inspect.getmodule(made)
    assert module is not None
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for imported in node.body:
                if isinstance(imported, ast.ImportFrom):
                    source = importlib.import_module(imported.module or "")
                    found |= {alias.name: getattr(source, alias.name) for alias in imported.names}
    return found


def clean(text: str) -> None:
    bad = [c for c in text if unicodedata.category(c) in ACTED_UPON and c not in "\n\t"]
    assert not bad, f"{bad} in {text!r}"


@pytest.mark.parametrize("render", RENDERERS, ids=lambda function: function.__name__)
def test_no_table_acts_on_a_terminal(render: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if (record := DOCUMENTS.get(render)) is None:
        hints = typing.get_type_hints(render, {**render.__globals__, **for_types_alone(render)})
        kind = next(hint for name, hint in hints.items() if name not in ("console", "return"))
        record = _with_a_metric(made(kind))
    write(record, render, as_json=False)
    shown = capsys.readouterr().out
    clean(shown)
    assert "\nforged line" not in shown
    if isinstance(record, Record):
        write(record, render, as_json=True)
        document = capsys.readouterr().out
        clean(document)
        assert document.isascii()
        assert "\x7f" not in document
        json.loads(document)


def _with_a_metric(value: Any) -> Any:
    """The same where a name has to be one of those that there are."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            at = getattr(value, field.name)
            if field.name == "metric":
                at = "accuracy"
            elif field.name == "metrics" and isinstance(at, list):
                at = ["accuracy"]
            elif field.name in ("created", "updated", "at"):
                at = "2026-01-01T00:00:00+00:00"
            object.__setattr__(value, field.name, _with_a_metric(at))
        return value
    return [_with_a_metric(item) for item in value] if isinstance(value, list) else value


def test_a_console_in_colour_has_no_control_but_its_own() -> None:
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=True, color_system="standard", width=80)
    table = Table(NASTY)
    table.add_row(NASTY, style="red")
    for thing in (table, Text(NASTY, style="bold"), NASTY, Text.assemble((NASTY, "dim"))):
        console.print(thing, markup=False, highlight=False)
    plain = stream.getvalue()
    for own in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[1;31m"):
        plain = plain.replace(own, "")
    clean(plain)


def test_lines_of_progress_and_of_logs_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream)
    measured = Evaluated(NASTY, NASTY, 0.5, 0.5)
    for event in (PhaseStarted("fitting", NASTY), Notice(NASTY), measured, Published(NASTY)):
        progress(event)
    clean(stream.getvalue())
    assert "\nforged line" not in stream.getvalue()
    say(f"one\n\ttwo{NASTY}\n", nl=False)
    shown = capsys.readouterr().out
    clean(shown)
    assert shown.startswith("one\n\ttwo")


def test_texts_are_escaped_and_good_ones_kept() -> None:
    for text in ("plain", "café – 模型", "a\n\tb", ""):
        assert printable_lines(text) == text
    assert printable("a\nb") == r"a\nb"
    assert escaped({"x": [("a\x1b",)]}) == {"x": [["a\\x1b"]]}
    assert len(escaped("x" * 10**6)) == 2000
    stream = io.StringIO()
    open_console(stream).print("[bold]no markup[/bold] :smile:")
    assert stream.getvalue() == "[bold]no markup[/bold] :smile:\n"


def test_a_card_has_no_markdown_and_no_fields_of_others(published: conftest.Published) -> None:
    nasty = "x`\n---\nlicense: mine\n---\n# Forged\n<script>alert(1)</script> | [a](http://x)"
    source = {"source": nasty, "sha256": "0" * 64}
    of_everything = ("tintray", "site", "job_id", "created", "precision")
    manifest = open_folder(published.folder).manifest
    manifest = manifest.changed(
        **dict.fromkeys(of_everything, nasty),
        base=source,
        tasks=[task.changed(expert=source) for task in manifest.tasks],
        job={"factory": f'{nasty}"); import os', "merge": {"method": nasty}},
    )
    for name in (None, manifest.tasks[0].name):
        lines = model_card(manifest, name).splitlines()
        assert lines.count("---") == 2
        assert not [line for line in lines if line.startswith(("license", "# Forged"))]
        for line in lines:
            outside = "".join(line.split("`")[::2])
            assert "<script>" not in outside or line.startswith("model = load(")
