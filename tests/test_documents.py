"""What the documentation names is there: files, folders, pages, commands."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import click
import pytest

import benchmarks
from tests.answers import COMMANDS
from tests.test_imports import LAYERS, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it tells of what was, too
FILE = re.compile(r"(?<![\w/.])((?:tintray|jobs|storage|tests|benchmarks|examples|docs)/[\w./-]+)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
COMMAND = re.compile(r"(?:^ {4,}(?:\$ )?|`|\|\s*)tintray ([a-z-]+(?: [a-z-]+)*)", re.MULTILINE)


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_files_and_folders_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {name.rstrip("./") for name in FILE.findall(text)}
    absent = {
        name for name in named if not any([*ROOT.glob(f"{name}{end}")] for end in ("", ".py"))
    }
    assert not absent
    assert not {link for link in LINK.findall(text) if not (page.parent / link).exists()}


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_commands_that_a_page_shows_are_there(page: Path) -> None:
    for words in COMMAND.findall(page.read_text(encoding="utf-8")):
        first, *others = words.split()
        assert first in COMMANDS, words
        if isinstance(COMMANDS[first], click.Group) and others and first != "serve":  # serve MERGE
            assert f"{first} {others[0]}" in COMMANDS, words


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """Else it could be found by a search alone; methods and commands are listed by themselves."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\ntheme:")[0]
    listed = set(re.findall(r"(\S+\.md)$", navigation, re.MULTILINE))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= listed


def test_the_architecture_describes_every_folder() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert [layer for layer in LAYERS if f"`{layer}" not in text] == []


def test_every_benchmark_can_be_imported() -> None:
    """Pages name them as the commands behind their figures."""
    names = [found.name for found in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]
    assert len(names) > 20
    for name in names:
        import_module(name)
