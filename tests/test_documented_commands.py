"""Every command that a page shows is one that click takes."""

from __future__ import annotations

import sys

import pytest

from tests.answers import COMMANDS
from tests.documented import parsed, shown
from tests.test_documents import PAGES
from tests.test_imports import ROOT

sys.path.insert(0, str(ROOT / "docs/site"))
import pages  # the site's own generators


def commands() -> dict[tuple[str, ...], str]:
    """Every command once, with the page that shows it first."""
    texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    for page in PAGES:
        if page.parent.name == "algorithms":
            texts[page.name] = pages.completed(f"algorithms/{page.name}", texts[page.name])
    found: dict[tuple[str, ...], str] = {}
    for name, text in {**texts, **pages.generated()}.items():
        for words in shown(text):
            found.setdefault(tuple(words), name)
    return found


ALL = commands()


def test_pages_show_every_command() -> None:
    assert {parsed([*words]) for words in ALL} | {"completion"} >= {
        name for name, command in COMMANDS.items() if not hasattr(command, "commands")
    }


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_click_takes_every_command_that_a_page_shows(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINTRAY_ALLOW_FACTORIES", "")
    parsed([*words])
