"""YAML from outside: plain values or one error, whatever the text asks for."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tintray.errors import SpecError
from tintray.jobs.config import settings as configuration
from tintray.jobs.config.documents import read_document
from tintray.jobs.config.yaml_text import parse_yaml
from tintray.limits import Limits

SMALL = Limits(max_yaml_bytes=5000, max_yaml_nodes=200, max_yaml_depth=10)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
plain = st.none() | st.booleans() | st.integers() | texts
values = st.recursive(
    plain | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
pieces = st.sampled_from(
    [
        *("[", "]", "{", "}", ",", ":", "?", "-", "\n", " ", "\t", "#", "|", ">", "'", '"', "%"),
        *("&a", "*a", "<<", "!!", "!", "int", "float", "bool", "binary", "set", "null", "map"),
        *("1e400", "0x_", "0b_", "1_0", "1:1", "9" * 5000, ".inf", "2024-13-45", "~", "\x85", "é"),
        *("\\UFFFFFFFF", "\\ud800", "\\x1b", "a", "a: ", "- ", "---\n", "...", "\u2028", "\ufeff"),
    ]
)


def values_in(value: Any) -> list[Any]:
    below = [*value, *value.values()] if isinstance(value, dict) else value
    inside = below if isinstance(below, list) else []
    return [value, *(found for item in inside for found in values_in(item))]


@settings(max_examples=30)
@given(values)
def test_plain_values_come_back(value: Any) -> None:
    assert parse_yaml(json.dumps(value, ensure_ascii=False))[1] == value
    # PyYAML leaves texts such as 0E0 without quotes, which YAML 1.2 takes for numbers.
    numbers = [v for v in values_in(value) if isinstance(v, str) and v[:1] in {*"-+.0123456789"}]
    if not numbers:
        assert parse_yaml(yaml.safe_dump(value, allow_unicode=True))[1] == value


@given(st.lists(pieces, max_size=60).map("".join))
def test_any_text_gives_plain_values_within_the_budget_or_one_error(text: str) -> None:
    try:
        _, value = parse_yaml(text, SMALL)
    except yaml.YAMLError:
        return
    found = values_in(value)
    assert len(found) <= SMALL.max_yaml_nodes
    assert {type(item) for item in found} <= {dict, list, str, int, float, bool, type(None)}
    json.dumps(value).encode()
    assert not any("\x1b" in item for item in found if isinstance(item, str))


def layers(one: str) -> str:
    """Nine aliases to what has nine aliases to what has …: 9^12 values in 700 characters."""
    pairs = zip("abcdefghijkl", "bcdefghijklm", strict=True)
    return "".join(f"{new}: &{new} {one % ', '.join([f'*{old}'] * 9)}\n" for old, new in pairs)


CHAIN = "".join(f"k{n}: &k{n} [*k{n - 1}]\n" for n in range(1, 100))


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "aliases": (f"a: &a [x]\n{layers('[%s]')}", "100,000 values"),
        "merges": (f"a: &a {{x: 1}}\n{layers('{<<: [%s]}')}", "100,000 values"),
        "aliases in depth": (f"k0: &k0 [1]\n{CHAIN}", "nested too deeply"),
        "itself": ("a: &a {b: *a}", "within itself"),
        "its merge": ("a: &a {<<: *a}", "within itself"),
        "values": ("a: &a [" + "x, " * 999 + "x]\nb: [" + "*a, " * 99 + "*a]", "100,000 values"),
        "lists": ("[" * 100_000, "nested too deeply"),
        "sections": ("{" * 100_000, "nested too deeply"),
        "items": ("- " * 100_000, "nested too deeply"),
        "keys": ("? " * 100_000, "nested too deeply"),
        "indents": ("".join(" " * n + "a:\n" for n in range(500)), "nested too deeply"),
        "length": ("#" * (2 << 20) + "\n", "max_yaml_bytes"),
        "digits": ("a: " + "1" * 5000, "5,000 digits"),
        "hexadecimal": ("a: 0x" + "f" * 5000, "5,002 digits"),
        "escape": (r'a: "\x1b[31m"', "U+001B"),
        "surrogate": (r'a: "\ud800"', "U+D800"),
        "beyond unicode": (r'a: "\UFFFFFFFF"', "too large"),
        "list as a key": ("[a]: b", "line 1, column 1"),
        "no number": ("a: !!int x", "line 1, column 4"),
        "no truth": ("a: !!bool x", "found 'x'"),
        "python": ("a: !!python/object/apply:os.getcwd []", "is not read here"),
        "binary": ("a: !!binary aGk=", "is not read here"),
    }.values(),
)  # fmt: skip
def test_what_a_file_may_not_ask_for(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=f"^{path}.*{words.replace('+', '[+]')}"):
        read_document(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", "010"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1_000", 1000), ("=", "="),
     ("0x1f", 31), ("1e-3", 0.001), ("+1.", 1.0), ("!!str 7", "7"), ("!!float 3", 3.0),
     ("no", False), ("~", None), ("a\u2028b", "a\u2028b")],
)  # fmt: skip
def test_scalars_are_read_as_people_mean_them(text: str, value: object) -> None:
    found = parse_yaml(text)[1]
    assert (found, type(found)) == (value, type(value))


def test_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.yaml")
    said = r"f\.yaml: expected a job file that can be read \(it is no regular file"
    with pytest.raises(SpecError, match=said):
        read_document(tmp_path / "f.yaml")


def test_budgets_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.toml"
    monkeypatch.setenv("TINTRAY_CONFIG", str(config))
    assert configuration.limits() == Limits()
    config.write_text('max_pool_bytes = "2GiB"\nmax_yaml_nodes = 7\ndata_roots = "a:/b"\n')
    monkeypatch.setenv("TINTRAY_MAX_TEXT_BYTES", "3 MiB")
    expected = replace(Limits(), max_pool_bytes=2 << 30, max_yaml_nodes=7, max_text_bytes=3 << 20)
    assert configuration.limits() == replace(expected, data_roots=(f"{tmp_path}/a", "/b"))
    (tmp_path / "f.yaml").write_text("a: [1, 2, 3, 4, 5]")
    with pytest.raises(SpecError, match="more than 7 values"):
        read_document(tmp_path / "f.yaml")


@pytest.mark.parametrize("name", [field.name for field in fields(Limits) if "max" in field.name])
@pytest.mark.parametrize(
    "written", ["0", "-1", "many", "1.5", "9" * 400, "9" * 400 + "GiB", "1ib", "inf", "nan"]
)
def test_a_budget_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    monkeypatch.setenv(f"TINTRAY_{name.upper()}", written)
    with pytest.raises(SpecError, match=f"^TINTRAY_{name.upper()}: expected "):
        configuration.limits()


def test_every_budget_is_in_the_table_of_settings() -> None:
    table = (Path(__file__).parents[2] / "docs/job-file.md").read_text(encoding="utf-8")
    for name in configuration.LIMITS:
        assert f"| `{name}` |" in table
