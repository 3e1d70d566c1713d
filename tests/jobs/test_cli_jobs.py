"""The commands on a real job: a small transformer and its experts, merged, listed and measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.answers import call
from tests.tiny_zoo import TASKS, TinyZoo


@pytest.fixture(scope="module")
def project(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a base, experts, their data and a job file that names no store."""
    zoo = tiny.copy(tmp_path_factory.mktemp("project") / "zoo")
    job = zoo.job(Path("unused"))
    del job["store"]
    (zoo.folder / "job.yaml").write_text(yaml.safe_dump(job))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(zoo.folder)
        yield zoo.folder


@pytest.fixture(scope="module", autouse=True)
def merged(project: Path) -> dict[str, Any]:
    """What ``tintray run --json`` of the real command line answers."""
    program = "from tintray.jobs.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "run", "job.yaml", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "round 4/4" in done.stderr
    assert "Traceback" not in done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def test_run_publishes_where_it_says_and_list_and_show_say_the_same(
    project: Path, merged: dict[str, Any]
) -> None:
    assert (merged["name"], merged["version"], merged["rounds"]) == ("tiny", "v1", 4)
    told = {task["name"]: task["metric"] for task in merged["tasks"]}
    assert told == {**dict.fromkeys(TASKS, "accuracy"), "four": "agreement"}
    assert merged["normalised_accuracy"] is not None
    folder = project / "tintray-data" / "merges" / "tiny" / "v1"
    assert (folder / "manifest.json").is_file()
    assert merged["url"] == folder.as_uri()
    for name in ("tiny/v1", merged["url"], folder):
        assert call("show", name, "--json").document["tasks"] == merged["tasks"]
    assert call("show", "tiny", "--json").document == merged
    assert "normalised accuracy" in call("show", "tiny").out
    listed = [(line["name"], line["url"]) for line in call("list", "--json").document]
    assert listed == [("tiny", merged["url"])]


def test_the_store_may_be_elsewhere(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = str(project / "tintray-data")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert "tiny/v1" in call("list", "--store", store).out
        patch.setenv("TINTRAY_STORE", store)
        assert "tiny/v1" in call("list").out


def test_validate_spends_nothing() -> None:
    report = call("validate", "job.yaml", "--json").document
    # a head on 16 features: 16 weights and a bias for each class; and a prompt, alike for all
    heads = {"two": 34, "three": 51, "five": 85, "four": 68}
    (prompt,) = {owned - heads[name] for name, owned in report["tint_parameters"].items()}
    assert prompt > 0 and prompt % (17 + 16) == 0  # a product over 17 positions of width 16
    assert any("four" in notice for notice in report["notices"])


def test_run_ends_with_a_table_and_commands_that_work(tmp_path: Path) -> None:
    elsewhere = ("--set", f"store={tmp_path}/my store", "--set", "name=other")
    lines = call("run", "job.yaml", *elsewhere).out.splitlines()
    commands = [line.split("   ")[0].strip() for line in lines if "  tintray " in line]
    assert [command.split()[1] for command in commands] == ["show", "report", "compare", "export"]
    assert commands[0] == f"tintray show other/v1 --store '{tmp_path}/my store'"
    assert call("show", "other/v1", "--store", f"{tmp_path}/my store").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("show tyni", ["'tyni'", "did you mean 'tiny'?"]),
        ("show tiny/v9", ["v9"]),
        ("show ./nowhere", ["nowhere"]),
        ("export tiny --task fvie x", ["'fvie'", "did you mean 'five'?"]),
        ("run job.yaml --set tint.sites=vit.layer.1", ["tint.sites", "vit.layers.1"]),
        ("validate job.yaml --set tasks.two.expert=two.npz", ["two.npz"]),
    ],
)
def test_bad_names_are_answered_with_the_nearest(words: str, said: list[str]) -> None:
    sentence = call(*words.split()).sentence
    assert [word for word in said if word not in sentence] == []
