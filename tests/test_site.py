"""The site: built strictly, asks nothing of other hosts, and knows all that the code has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.answers import COMMANDS
from tests.browser import CHROMIUM, browser
from tests.test_imports import ROOT
from tintray import errors
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.config.reference import FILES, schema_file
from tintray.jobs.config.yaml_text import parse_yaml
from tintray.merging import methods

LOADED = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc="?(https?:)?//|<link[^>]*\shref="?https?://
    |url\(["']?(?:https?:)?//""", re.VERBOSE)  # fmt: skip
WIDTHS = (360, 1440)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``make site`` does: a link or an anchor that leads nowhere ends it."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    assert len(files) > 60
    assert [path for path in files if LOADED.search(path.read_text(encoding="utf-8"))] == []


def test_editors_find_the_schemas_there(site: Path) -> None:
    for name in FILES:
        published = site / f"schemas/{name}.schema.json"
        assert published.read_bytes() == schema_file(name).read_bytes()


def test_the_reference_has_every_command_error_and_method(site: Path) -> None:
    commands = "".join(path.read_text() for path in (site / "commands").glob("*.html"))
    assert [name for name in COMMANDS if f">tintray {name}<" not in commands] == []
    told = (site / "errors.html").read_text()
    kinds = [name for name in vars(errors) if name.endswith("Error")]
    assert [name for name in kinds if f'id="{name.lower()}"' not in told] == []
    for name, known in methods().items():
        page = (site / f"algorithms/{name}.html").read_text()
        assert all(f"<code>{one.name}</code>" in page for one in known.parameters), name


def test_what_a_page_says_to_write_into_a_job_file_is_accepted(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "docs/site"))
    import pages

    (tmp_path / "base").mkdir()
    job = {"name": "one", "base": "base", "tasks": [{"name": "a", "expert": "base"}]}
    job["tasks"][0]["pool"] = {"path": "base"}
    for page in (ROOT / "docs/algorithms").glob("*.md"):
        text = pages.completed(f"algorithms/{page.name}", page.read_text(encoding="utf-8"))
        merge = parse_yaml(text.partition("```yaml\n")[2].partition("```")[0])[1]["merge"]
        assert parse_spec({**job, "merge": merge}, folder=tmp_path).merge.method == page.stem


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_pages_fit_their_window_by_day_and_by_night(site: Path, tmp_path: Path) -> None:
    names = ("index", "concepts", "job-file", "commands/merge-models", "algorithms/featcal")
    with browser(tmp_path / "profile") as page:
        for name in names:
            for width in WIDTHS:
                page.open(site / f"{name}.html", width, dark=width == WIDTHS[0])
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert {url.partition(":")[0] for url in page.requests} <= {"file", "data", "blob"}
