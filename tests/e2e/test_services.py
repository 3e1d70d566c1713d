"""A job on real servers: artifacts in S3, the catalog in PostgreSQL, by the real command line."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tintray
from tests.servers import BUCKET, PostgresServer, S3Server
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.jobs import api
from tintray.jobs.cli import main
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.tables import Base

_MAIN = "from tintray.jobs.cli import main; raise SystemExit(main())"
STORE = f"s3://{BUCKET}/e2e/team store"


@dataclass(frozen=True)
class Team:
    """A published merge on the servers, what its command said, and what must never be said."""

    zoo: TinyZoo
    folder: Path
    environment: dict[str, str]
    catalog: str
    secrets: tuple[str, ...]
    summary: dict[str, Any]
    said: str


Call = Callable[..., tuple[int, str, str]]
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def team(
    tiny: TinyZoo,
    s3_server: S3Server,
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Team]:
    """One job by the real command, in a process of its own; store and catalog from the job file."""
    folder = tmp_path_factory.mktemp("team")
    zoo = tiny.copy(folder / "zoo")
    environment = s3_server.environment() | {"XDG_CACHE_HOME": str(folder / "cache")}
    with postgres_server.database() as catalog:
        job = zoo.job_file(folder / "unused", catalog=catalog)
        job.write_text(job.read_text().replace(str(folder / "unused"), STORE))
        done = subprocess.run(
            [sys.executable, "-c", _MAIN, "run", str(job), "--json"],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        environment |= {"TINTRAY_STORE": STORE, "TINTRAY_CATALOG": catalog}
        secrets = (s3_server.secret, postgres_server.password)
        summary = json.loads(done.stdout)
        yield Team(zoo, folder, environment, catalog, secrets, summary, done.stdout + done.stderr)


@pytest.fixture
def call(team: Team, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Call a command where store and catalog are the team's; exit code, output and error."""
    monkeypatch.chdir(team.folder)
    for name, text in team.environment.items():
        monkeypatch.setenv(name, text)

    def run(*args: str, **environment: str) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as once:
            for name, text in environment.items():
                once.setenv(name, text)
            capfd.readouterr()
            code = main(args)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def ask(call: Call) -> Ask:
    """The JSON document of a command that must succeed."""

    def run(*args: str, **environment: str) -> Any:
        code, out, err = call(*args, "--json", **environment)
        assert code == 0, err
        return json.loads(out)

    return run


def test_the_merge_is_listed_shown_and_measured_alike(team: Team, ask: Ask) -> None:
    assert team.summary["url"] == f"{STORE}/merges/tiny/v1"
    assert [line["url"] for line in ask("list")] == [team.summary["url"]]
    assert ask("show", "tiny") == team.summary
    assert ask("show", team.summary["url"])["tasks"] == team.summary["tasks"]
    assert ask("eval", "tiny")["tasks"] == team.summary["tasks"]


@pytest.mark.usefixtures("call")
def test_it_loads_and_answers_as_the_same_job_in_a_folder(team: Team, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/catalog.db"
    local = api.run(team.zoo.spec(tmp_path / "store", catalog=database))
    here, there = (tintray.load(url) for url in (local.url, team.summary["url"]))
    assert there.manifest.files == here.manifest.files
    for task in TASKS:
        answers = [m.for_task(task)(pixel_values=torch.zeros(2, 3, 16, 16)) for m in (here, there)]
        assert torch.equal(*[answer.logits for answer in answers])


def test_a_copy_in_a_folder_has_the_same_files(team: Team, ask: Ask, tmp_path: Path) -> None:
    copied = ask("copy", "tiny", str(tmp_path / "copy"))
    folder = tmp_path / "copy" / "merges" / "tiny" / "v1"
    assert (copied["url"], copied["files"]) == (folder.as_uri(), 22)
    for name, listed in json.loads((folder / "manifest.json").read_text())["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == listed["sha256"]
    shown = ask("show", "tiny", TINTRAY_STORE=str(tmp_path / "copy"), TINTRAY_CATALOG="")
    assert shown["tasks"] == team.summary["tasks"]
    assert shown["url"] == folder.as_uri()
    back = ask("copy", str(folder), f"s3://{BUCKET}/e2e/another")
    assert back["url"] == f"s3://{BUCKET}/e2e/another/merges/tiny/v1"
    assert ask("artifacts", "verify", back["url"])["damaged"] == []


def test_a_second_job_computes_no_labels_and_no_vectors_and_says_so(call: Call) -> None:
    code, _, err = call("run", "zoo/job.yaml", "--set", "name=second")
    assert code == 0, err
    assert (
        "self-labels of 4 of 4 tasks and task vectors of 4 of 4 tasks were reused from the store"
        in err
    )
    assert err.count("found in the store") == 4


def test_the_store_is_sound_and_nothing_in_it_is_garbage(ask: Ask) -> None:
    report = ask("artifacts", "verify")
    assert (report["damaged"], report["artifacts"] > 30) == ([], True)
    lines = ask("artifacts", "ls")
    assert all(line["in_store"] and line["needed_by"] for line in lines)
    assert ask("gc", "--older-than", "0")["garbage"] == []
    assert ask("db", "check")["problems"] == []


@pytest.mark.parametrize(
    ("wrong", "args", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "hunter2"}, (), ["refused the credentials", "AWS_SECRET"]),
        ({"AWS_ACCESS_KEY_ID": ""}, (), ["credentials", "AWS_ACCESS_KEY_ID"]),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, (), ["cannot be reached", "AWS_ENDPOINT_URL"]),
        ({}, ("store=s3://no-such-bucket/x",), ["no bucket 'no-such-bucket'", "create it"]),
        (
            {},
            ("catalog=postgresql+psycopg://me:hunter2@127.0.0.1:1/db",),
            ["postgresql+psycopg://me:***@127.0.0.1:1/db", "check host and port"],
        ),
    ],
    ids=["secret", "key", "endpoint", "bucket", "database"],
)
def test_what_cannot_be_used_is_one_sentence_before_any_compute(
    call: Call, wrong: dict[str, str], args: tuple[str, ...], words: list[str]
) -> None:
    overrides = [word for text in args for word in ("--set", text)]
    for name in ("run", "validate"):
        code, out, err = call(name, "zoo/job.yaml", *overrides, **wrong)
        assert (code, out) == (2, ""), err
        (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert [word for word in words if word not in error] == []
        assert not re.search("planning|Traceback|hunter2", err)


def test_a_wrong_password_of_the_database_is_one_sentence(team: Team, call: Call) -> None:
    wrong = team.catalog.replace(team.secrets[1], "hunter2")
    for args in (("list",), ("show", "tiny"), ("gc",), ("db", "check"), ("db", "upgrade")):
        code, out, err = call(*args, TINTRAY_CATALOG=wrong)
        assert (code, out) == (2, ""), err
        assert "check the user and the password" in err
        assert "hunter2" not in err


def test_credentials_are_in_no_log_error_manifest_artifact_or_row(
    team: Team, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    said = [team.said]
    with caplog.at_level(logging.INFO):
        for args in (
            ("doctor", "--debug", "--address", "127.0.0.1:1:1"),
            ("show", "tinny", "--debug"),
            ("artifacts", "ls"),
            ("gc",),
            ("db", "check"),
            ("list", "--catalog", team.catalog.replace("/t", "/nowhere"), "--debug"),
        ):
            said += call(*args)[1:]
    with Catalog.open(team.catalog) as catalog, catalog.database.read() as session:
        rows = [
            repr(tuple(row))
            for table in Base.metadata.sorted_tables
            for row in session.execute(table.select())
        ]
    assert len(rows) > 100
    store = open_store(STORE)
    stored = [store.get(entry.key).decode("latin-1") for entry in store.list()]
    assert len(stored) > 30
    cache = (team.folder / "cache").rglob("*")
    cached = [path.read_text("latin-1") for path in cache if path.is_file()]
    for text in [*said, caplog.text, *rows, *stored, *cached]:
        assert [secret for secret in team.secrets if secret in text] == []
