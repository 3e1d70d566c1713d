"""Every command that a page shows is one that click takes, and is run: on tiny models."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tintray
from tests.answers import COMMANDS, call
from tests.documented import make_world, parsed, publish, shown
from tests.test_documents import PAGES
from tests.test_imports import ROOT
from tintray.jobs.runs.method_list import list_methods

sys.path.insert(0, str(ROOT / "docs/site"))
import pages  # the site's own generators

METHODS = ("esm", "ties")
"""Those whose pages are run whole."""
ELSEWHERE = {
    **dict.fromkeys(("serve", "serve start"), "a server that stays: tests/e2e/test_serving.py"),
    **dict.fromkeys(
        ("serve status", "serve promote", "serve abort"), "a server: tests/jobs/test_serving.py"
    ),
    **dict.fromkeys(
        ("submit", "watch", "wait", "logs", "cancel", "resume", "retry"),
        "a Ray cluster with a queue: tests/e2e/test_queue.py, tests/jobs/test_queue.py",
    ),
    "ui": "a server that stays: tests/jobs/test_ui.py",
    "queue": "a cluster: tests/jobs/test_queue_order.py",
    "doctor": "starts Ray: tests/e2e/test_queue.py, tests/jobs/test_cli_storage.py",
}
"""Commands that are only parsed here, and where they are run."""
PLACES = {
    **{
        f"merge.method={line.name}": "each method as a job: tests/jobs/test_methods.py"
        for line in list_methods()
        if line.name not in METHODS
    },
    **{
        f"--methods {line.name}": "all of them on one merge: tests/jobs/test_compare.py"
        for line in list_methods()
        if line.name not in METHODS
    },
    "--from-serve": "a server: tests/jobs/test_serving.py",
    "--onnx": "half a minute for each: tests/jobs/test_export.py",
    "hf://": "the hub: tests/jobs/test_sharing.py",
    "s3://": "a bucket: tests/jobs/test_sharing.py, tests/e2e/test_services.py",
    "postgresql": "a database server: tests/storage/test_database.py",
    "cluster.address": "a cluster: tests/e2e/test_nodes.py",
    "mypackage": "a module of the reader's: tests/e2e/test_factory.py",
    "--methods all": "all of them on one merge: tests/jobs/test_compare.py",
    "examples/ten-scripts.yaml": "the real zoo: tests/e2e/test_real_zoo.py",
    "zoo/omniglot": "200 experts: tests/benchmarks/test_omniglot.py",
    "3f9a2c41d07b": "an artifact of the reader's: tests/jobs/test_cli_storage.py",
    "-1a2b3c4d": "a job of the reader's: tests/jobs/test_queue.py",
    "org/": "the hub: tests/tintray/test_hub.py",
}
"""What a command may name that is not here: it is only parsed, and run by the tests named."""
CHANGING = (
    *("add-task", "remove-task", "refresh-task", "rollback", "add-router", "alias"),
    *("delete", "gc"),
)
"""Run last, in this order, each from the tasks of v1."""
SMALL = ("fit.rounds=2", "fit.batch_size=3", "fit.floor=false", "cluster.workers=0")
SECTIONS = "\nfit: {rounds: 2, batch_size: 3, floor: false}\ncluster: {workers: 0}\n"
"""Laid over job files: what is shown is a command, not a good merge."""
JUDGING = {"check": 1, "monitor": 6}
"""What they may end with: models that were never trained lose."""
NAMES = {"NAME": "ten-scripts", "MERGE": "ten-scripts", "BASE": "llama", "DIR": "merged"}
"""What stands for a name in the pages."""


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


def test_tests_that_run_a_command_instead_are_there() -> None:
    for reason in (*ELSEWHERE.values(), *PLACES.values()):
        named = re.findall(r"tests/[\w/]+\.py", reason)
        assert named, reason
        assert all((ROOT / name).is_file() for name in named), reason


def test_pages_show_every_command() -> None:
    assert {parsed([*words]) for words in ALL} | {"completion"} >= {
        name for name, command in COMMANDS.items() if not hasattr(command, "commands")
    }


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_click_takes_every_command_that_a_page_shows(words: tuple[str, ...]) -> None:
    parsed([*words])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[Path]]:
    """The folder in which commands are run, and what lay there before the first."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TINTRAY_CONFIG", str(folder / "config.toml"))
        publish()
        yield {*folder.iterdir()}


def here(words: tuple[str, ...]) -> bool:
    """Whether a command is run in this file."""
    line = " ".join(words)
    return parsed([*words]) not in ELSEWHERE and not any(place in line for place in PLACES)


def in_order() -> list[tuple[str, ...]]:
    """Those that change a merge last, and what deletes at the very end."""
    ranks = {name: rank for rank, name in enumerate(CHANGING, start=1)}
    return sorted(filter(here, ALL), key=lambda words: ranks.get(parsed([*words]), 0))


def filled(words: tuple[str, ...]) -> list[str]:
    """A command with names for what stands for one, and small where it computes."""
    experts = iter(("llama-math", "llama-code"))
    given = [next(experts) if word == "EXPERT" else NAMES.get(word, word) for word in words]
    given = [word.replace("NAME/", "ten-scripts/") for word in given]
    if "--adapter" in given and given[1] == "ten-scripts":  # an export for those who have adapters
        given = [{"ten-scripts": "adapters", "mnist": "flowers"}.get(word, word) for word in given]
    given = [word.replace("~", "home", 1) if word.startswith("~/") else word for word in given]
    name = parsed(given)
    if name == "new":
        given += ["--force"] if "--template" in given else ["--force", "--yes"]
    takes = {one.name for one in COMMANDS[name].params}
    if "overrides" in takes and given[1].startswith("examples/"):
        given += [f"--set={field}" for field in SMALL]
    return given


@pytest.mark.parametrize(
    "page", ["README.md", "errors.md", "routing.md", "serving.md", "tutorial.md"]
)
def test_what_a_page_shows_in_python_runs(page: str, world: set[Path]) -> None:
    """Its first block, with the merge, the task and the images that are here."""
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    block = path.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    job = Path("job.yaml").read_text(encoding="utf-8")  # a merge of its own name
    assert "name: ten-scripts" in job
    Path("own.yaml").write_text(job.replace("name: ten-scripts", "name: own"), encoding="utf-8")
    here = {'"models"': '"ten-scripts"', "birds": "mnist", "signs": "svhn", "job.yaml": "own.yaml"}
    for name, stands_for in here.items():
        block = block.replace(name, stands_for)
    with np.load("data/mnist.npz") as data:
        images = data["x_test"]
    one: dict[str, Any] = {"tintray": tintray, "image": images[0], "other": images[1]}
    one["images"] = images if "predict" in block else torch.zeros(1, 3, *images.shape[1:3])
    exec(block, one)
    assert {"merge", "model", "answer"} & one.keys()


@pytest.mark.parametrize("words", in_order(), ids=" ".join)
def test_every_command_that_a_page_shows_does_what_it_is_shown_for(
    words: tuple[str, ...], world: set[Path]
) -> None:
    given = filled(words)
    name = parsed(given)
    if name in CHANGING:
        assert call("rollback", "ten-scripts", "--to", "v1").code == 0
    for word in given if name in ("export", "merge", "run") else ():
        if (made := Path.cwd() / word).is_dir() and made not in world:
            shutil.rmtree(made)  # another page writes it too
    said = call(*given)
    if name == "new" and "--template" not in given:
        file = Path(given[given.index("-o") + 1] if "-o" in given else "job.yaml")
        file.write_text(file.read_text() + SECTIONS)
    assert said.code in (0, JUDGING.get(name, 0)), said.err
