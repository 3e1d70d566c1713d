"""The page over the catalog: what it shows, to whom, and how it looks in a real browser."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Thread
from urllib.error import HTTPError

import pytest

import tintray
from tests.answers import call
from tests.browser import OVERLAPS, Page, screenshots
from tests.jobs.test_report import HOSTILE, SIZES, tab
from tests.tiny_zoo import TinyZoo
from tintray.jobs.events import RoundDone

__all__ = ["tab"]  # a fixture

TOKEN = "a-token-of-16-or-more"
_MAIN = "import sys; from tintray.jobs.cli import main; sys.exit(main(sys.argv[1:]))"


@contextmanager
def serving(store: Path, *words: str, token: str = "") -> Iterator[str]:
    """``tintray ui`` in a process of its own; where it answers."""
    command = [sys.executable, "-c", _MAIN, "ui", "--store", str(store), *words]
    environment = {**os.environ, "TINTRAY_UI_TOKEN": token}
    with subprocess.Popen(
        [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if " at http" in line)
            yield said.rpartition(" at ")[2].strip()
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def ask(
    url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, headers or {}), timeout=60
        ) as found:
            assert found.headers["Content-Security-Policy"].startswith("default-src 'none'")
            return found.status, found.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def store(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a merge that grew, and a job that failed."""
    folder = tmp_path_factory.mktemp("ui") / "store"
    merge = tintray.run(tiny.spec(folder, fit={"rounds": 6}))
    merge.conflicts(examples=8)
    merge.remove(["four"])

    def stop(event: object) -> None:
        raise tintray.FitError("enough")

    with pytest.raises(tintray.FitError):
        tintray.run(tiny.spec(folder), on_event=stop)
    return folder


@pytest.fixture(scope="module")
def place(store: Path) -> Iterator[str]:
    with serving(store) as url:
        yield url


def links(tab: Page, path: str) -> list[str]:
    found = tab.evaluate(
        f"[...document.querySelectorAll('a[href^=\"{path}\"]')].map(e => e.pathname)"
    )
    return list(dict.fromkeys(found))


def test_every_page_in_a_browser(place: str, tab: Page, tmp_path: Path) -> None:
    """From the overview down to a report, by day and by night, on a phone and on a laptop."""
    tab.open(f"{place}/", 1440)
    jobs, (merge, *versions) = links(tab, "/jobs/"), links(tab, "/merges/")
    text = tab.evaluate("document.body.innerText")
    assert len(jobs) == 3 and text.count("succeeded") == 2 and "failed" in text
    assert (merge, versions) == ("/merges/tiny", ["/merges/tiny/v2"])
    pages = {
        "overview": "/",
        "job": jobs[-1],
        "failed": jobs[0],
        "tree": merge,
        "version": "/merges/tiny/v1",
    }
    shots = screenshots(tmp_path)
    for name, path in pages.items():
        for width, dark in SIZES:
            tab.requests.clear()
            tab.open(place + path, width, dark=dark)
            assert tab.evaluate(OVERLAPS) == [], path
            assert [url for url in tab.requests if not url.startswith("data:")] == [place + path]
            tab.screenshot(shots / f"ui-{name}-{width}-{'dark' if dark else 'light'}.png")
        assert tab.evaluate("document.querySelectorAll('script').length") == 0
    assert tab.evaluate("document.querySelector('#conflicts h2').innerText") == "Which tasks fight"
    tab.open(place + merge, 1440)
    assert links(tab, "/merges/") == ["/merges/tiny/v2", "/merges/tiny/v1"]
    tab.open(place + jobs[0], 1440)
    assert "failed" in (said := tab.evaluate("document.body.innerText")) and "enough" in said


def test_a_job_is_followed_while_it_runs(tiny: TinyZoo, place: str, store: Path, tab: Page) -> None:
    """Pages ask for themselves again until nothing moves any more."""
    reached, go_on = Event(), Event()

    def wait(event: object) -> None:
        if isinstance(event, RoundDone) and event.round == 3:
            reached.set()
            go_on.wait(60)

    spec = tiny.spec(store, fit={"rounds": 4}).changed(name="followed")
    job = Thread(target=tintray.run, args=[spec], kwargs={"on_event": wait})
    job.start()
    again = "document.querySelector('meta[http-equiv=refresh]')?.content"
    try:
        assert reached.wait(60)
        tab.open(f"{place}/", 360)
        assert "1\njobs at work" in tab.evaluate("document.body.innerText")
        assert tab.evaluate(again) == "5"
        (page, *_) = links(tab, "/jobs/followed")
        tab.open(place + page, 360)
        assert "fitting\nstate" in tab.evaluate("document.body.innerText")
        assert tab.evaluate(again) == "5"
    finally:
        go_on.set()
        job.join()
    tab.open(place + page, 360)
    assert "published as followed/v1" in tab.evaluate("document.body.innerText")
    assert tab.evaluate(again) is None


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/jobs/none", 404, "there is no job none"),
        ("/merges/tinyy", 404, "did you mean 'tiny'"),
        ("/merges/tiny/v9", 404, "tiny has no version v9"),
        ("/merges/tiny/%2e%2e%2fv1", 404, "There is no such page."),
        ("/merges/..%2f..%2ftiny/v1", 404, "There is no such page."),
        ("/nothing", 404, "There is no such page."),
        ("/%3Cscript%3E", 404, "There is no such page."),
        ("/docs", 404, "There is no such page."),
    ],
)
def test_what_is_not_there_has_a_page_too(place: str, path: str, code: int, said: str) -> None:
    found = ask(place + path)
    assert found[0] == code and said in found[1].replace("&#x27;", "'")


def test_nothing_can_be_changed_or_asked_from_elsewhere(place: str) -> None:
    assert ask(place + "/", body=b"x")[0] == 413
    assert ask(place + "/", {"Host": "tintray.example"})[0] == 421


def test_the_token_is_the_password(store: Path) -> None:
    with serving(store, "--host", "0.0.0.0", token=TOKEN) as url:
        place = url.replace("0.0.0.0", "127.0.0.1")
        for given in (
            "",
            f"Bearer {TOKEN}x",
            f"Basic {_basic('wrong')}",
            "Basic !",
            f"Basic {TOKEN}",
        ):
            assert ask(place + "/", {"Authorization": given})[0] == 401
        for given in (f"Bearer {TOKEN}", f"Basic {_basic(TOKEN)}"):
            assert ask(place + "/", {"Authorization": given, "Host": "elsewhere"})[0] == 200


def _basic(password: str) -> str:
    return base64.b64encode(f"anybody:{password}".encode()).decode()


def test_it_does_not_start_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINTRAY_UI_TOKEN", raising=False)
    refused = call("ui", "--host", "0.0.0.0", "--store", tmp_path).sentence
    assert "can be reached from other machines, and TINTRAY_UI_TOKEN is not set" in refused
    assert "catalog" in call("ui", "--store", tmp_path).sentence
    assert list(tmp_path.iterdir()) == []


def test_names_of_strangers_stay_text(store: Path, tab: Page, tmp_path: Path) -> None:
    """A catalog is a database that others may write to."""
    copied = Path(shutil.copytree(store, tmp_path / "store"))
    with closing(sqlite3.connect(copied / "catalog.db")) as database, database:
        database.execute("UPDATE jobs SET name = ?", (HOSTILE,))
        database.execute("UPDATE merges SET name = name || ?", (HOSTILE,))
        database.execute("UPDATE events SET reason = ?", (HOSTILE,))
    with serving(copied) as place:
        tab.open(f"{place}/", 360)
        jobs, merges = links(tab, "/jobs/"), links(tab, "/merges/")
        for path in ("/", *jobs, *merges):
            tab.open(place + path, 360)
            assert tab.evaluate("document.querySelectorAll('script, img').length") == 0, path
            assert tab.evaluate("document.title") != "taken"
            assert tab.evaluate(OVERLAPS) == [], path
            shown = "<script>" in tab.evaluate("document.body.innerText")
            assert shown or path in merges  # of names with a slash in them there is no page
