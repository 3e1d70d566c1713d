"""The commands on a real job: two small transformers, merged, listed, measured and exported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny_zoo import TinyZoo
from tintray.jobs.cli import main

TASKS = ["two", "three", "five", "four"]


@pytest.fixture(scope="module")
def project(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, experts, their data and a job file that names no store."""
    zoo = tiny.copy(tmp_path_factory.mktemp("project") / "zoo")
    job = zoo.job(Path("unused"))
    del job["store"]
    (zoo.folder / "job.yaml").write_text(yaml.safe_dump(job))
    return zoo.folder


@pytest.fixture(scope="module")
def merged(project: Path) -> dict[str, Any]:
    """What ``tintray run --json`` of the real command line answers."""
    done = tintray(project, "run", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    assert "round 4/4" in done.stderr
    assert "Traceback" not in done.stderr
    return summary


def tintray(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    names = ("TINTRAY_STORE", "TINTRAY_CATALOG", "FORCE_COLOR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from tintray.jobs.cli import main; raise SystemExit(main())",
            *args,
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


Ask = Callable[..., str]


@pytest.fixture
def ask(
    project: Path,
    merged: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Ask:
    """Call a command beside the finished merge; returns its standard output."""
    monkeypatch.chdir(project)
    monkeypatch.delenv("TINTRAY_STORE", raising=False)
    monkeypatch.delenv("TINTRAY_CATALOG", raising=False)

    def call(*args: str) -> str:
        capfd.readouterr()
        code = main(args)
        out, err = capfd.readouterr()
        assert code == 0, err
        return out

    return call


def names(rows: Sequence[dict[str, Any]], key: str = "name") -> list[Any]:
    return [found[key] for found in rows]


def test_run_publishes_where_it_says(project: Path, merged: dict[str, Any]) -> None:
    assert (merged["name"], merged["version"], merged["rounds"]) == ("tiny", "v1", 4)
    assert names(merged["tasks"]) == TASKS
    assert names(merged["tasks"], "metric") == ["accuracy", "accuracy", "accuracy", "agreement"]
    assert merged["normalised_accuracy"] is not None
    folder = project / "tintray-data" / "merges" / "tiny" / "v1"
    assert (folder / "manifest.json").is_file()
    assert merged["url"] == folder.as_uri()


def test_show_answers_what_run_answered(ask: Ask, merged: dict[str, Any]) -> None:
    folder = merged["url"].removeprefix("file://")
    for name in ("tiny", "tiny/v1", merged["url"], folder):
        assert json.loads(ask("show", name, "--json"))["tasks"] == merged["tasks"]
    assert json.loads(ask("show", "tiny", "--json")) == merged
    assert "normalised accuracy" in ask("show", "tiny")


def test_list_names_the_merge(ask: Ask, merged: dict[str, Any]) -> None:
    listed = json.loads(ask("list", "--json"))
    assert [(entry["name"], entry["version"], entry["url"]) for entry in listed] == [
        ("tiny", "v1", merged["url"])
    ]
    assert "tiny/v1" in ask("list")


def test_the_store_may_be_elsewhere(
    ask: Ask, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "tiny/v1" in ask("list", "--store", str(project / "tintray-data"))
    monkeypatch.setenv("TINTRAY_STORE", str(project / "tintray-data"))
    assert "tiny/v1" in ask("list")


def test_validate_spends_nothing(ask: Ask) -> None:
    report = json.loads(ask("validate", "job.yaml", "--json"))
    assert report["tasks"] == TASKS
    # a head on 16 features: 16 weights and a bias for each class
    assert report["tint_parameters"] == {"two": 34, "three": 51, "five": 85, "four": 68}
    assert any("four" in notice for notice in report["notices"])


def test_run_ends_with_a_table_and_commands_that_work(
    ask: Ask, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ask("run", "job.yaml", "--set", f"store={tmp_path}/my store", "--set", "name=other")
    commands = [line.split("   ")[0].strip() for line in out.splitlines() if "  tintray " in line]
    assert [command.split()[1] for command in commands] == ["show", "compare", "export"]
    assert commands[0] == f"tintray show other/v1 --store '{tmp_path}/my store'"
    ask("show", "other/v1", "--store", f"{tmp_path}/my store")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["show", "tyni"], ["'tyni'", "did you mean 'tiny'?"]),
        (["show", "tiny/v9"], ["v9"]),
        (["show", "./nowhere"], ["nowhere"]),
        (["export", "tiny", "--task", "fvie", "x"], ["'fvie'", "did you mean 'five'?"]),
        (["run", "job.yaml", "--set", "tint.site=vit.layer.1"], ["tint.site", "vit.layers.1"]),
        (["validate", "job.yaml", "--set", "tasks.two.expert=two.npz"], ["two.npz"]),
    ],
)
def test_bad_names_are_answered_with_the_nearest(
    ask: Ask, capfd: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    code = main(args)
    out, err = capfd.readouterr()
    said = err.splitlines()[-1]
    assert (code, out) == (2, ""), err
    assert said.startswith("error: ")
    assert [word for word in words if word not in said] == []
