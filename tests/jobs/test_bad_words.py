"""Whatever is typed in the wrong place: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from tests.answers import call
from tests.sorts import SORTS, make_zoo, write_yaml

PATIENCE = 60
"""Seconds after which a command hangs: a pipe without a writer would be waited for without end."""
LONG = "a" * 5000
HUGE = "9" * 400


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: a published merge, its job, and things that are no merges and no jobs."""
    folder = tmp_path_factory.mktemp("place")
    zoo, sort = make_zoo("pictures", folder / "zoo"), SORTS["block"]
    write_yaml(folder / "three.yaml", sort.task(zoo, "three"))
    assert call("run", write_yaml(folder / "job.yaml", sort.job(zoo, folder / "store"))).code == 0
    (folder / "full").mkdir()
    (folder / "folder.yaml").mkdir()
    for name in ("file", "full/file"):
        (folder / name).write_text("hello")
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    for name in ("pipe", "pipe.yaml", "pipe.npz"):
        os.mkfifo(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TINTRAY_STORE", str(folder / "store"))
        yield folder


pytestmark = pytest.mark.usefixtures("place")


def left() -> set[Path]:
    """All files that are there, but for what reading leaves behind a database."""
    return {path for path in Path.cwd().rglob("*") if not path.name.startswith("catalog.db-")}


@contextmanager
def patience() -> Iterator[None]:
    """Fail where a command waits for ever."""

    def over(_: int, __: FrameType | None) -> None:
        raise TimeoutError("the command hangs")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(*words: object) -> None:
    """A command is refused in one sentence; it has written nothing."""
    before = left()
    with patience():
        found = call(*words)
    assert (found.code, found.out) == (2, ""), (words, found)
    assert "internal error" not in found.err
    assert "Traceback" not in found.err
    assert left() == before
    (sentence,) = (line for line in found.err.splitlines() if line.startswith("error: "))
    assert len(sentence) <= 520


MERGES = [
    "", "nope", "tiny/v99", f"tiny/v{HUGE}", "tiny/v-1", "tiny/vx", "tiny/v１", "tiny/v1/extra",
    "/", "../tiny", "./nope", "./file", "./full", "./pipe", "/dev/zero", "/dev/null", "~nobody/x",
    LONG, "file:///nope", "file://", "file://host/x", "s3://", "http://x", "é", "%", "'; --",
    "./store", "store/merges/tiny", "store/merges/tiny/v1/manifest.json",
]  # fmt: skip


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: repr(merge)[:30])
def test_what_is_no_merge(merge: str) -> None:
    for command in ("show", "eval", "compare", "history", "delete", "rollback", "artifacts verify"):
        refused(*command.split(), merge)
    for command in ("export", "copy"):
        refused(command, merge, "out")
    for command in ("refresh-task", "remove-task"):
        refused(command, merge, "two")
    refused("add-task", merge, "three.yaml")
    refused("diff-merges", merge, "tiny/v1")


MERGE = ("merge", "--base", "zoo/base", "zoo/one", "zoo/one", "--method")


@pytest.mark.parametrize("folder", ["", "file", "full", "file/x", "pipe", "/dev/null", LONG])
def test_what_is_no_new_folder(folder: str) -> None:
    refused("export", "tiny/v1", folder)
    refused("export", "tiny/v1", folder, "--task", "two")
    refused(*MERGE, "average", "--output", folder)


@pytest.mark.parametrize(
    "file", ["nope.yaml", "full", "pipe.yaml", "folder.yaml", "binary.yaml", "/dev/zero", "", LONG]
)
def test_what_is_no_job_file(file: str) -> None:
    for command in ("run", "validate", "plan", "submit", "add-task tiny/v1"):
        refused(*command.split(), file)
    refused("run", "--from-mergekit", file, "--output", "out")


@pytest.mark.parametrize("job", ["", "nope", "%", "_", "latest/x", LONG, "é", HUGE])
def test_what_is_no_job(job: str) -> None:
    for command in ("status", "watch", "logs", "wait", "cancel", "resume", "retry"):
        refused(command, job)
    refused("diff", job, "x")


@pytest.mark.parametrize(
    "catalog", ["nope", "mysql://x", "sqlite://", "sqlite:///file", "sqlite:///full", f"x{LONG}",
                f"sqlite:///{LONG}", "sqlite:////dev/null", "postgresql+psycopg://h:99999/x"]
)  # fmt: skip
def test_what_is_no_catalog(catalog: str) -> None:
    for words in (
        *("list", "show tiny", "ps", "status x", "queue", "cancel x", "gc", "artifacts ls"),
        *("db check", "db prune", "db relocate x", "rollback tiny", "delete tiny"),
        "monitor tiny --history",
    ):
        refused(*words.split(), "--catalog", catalog)


OPTIONS = (
    *("wait nope --timeout", "gc --older-than", "plan job.yaml --calibrate"),
    *(
        "queue --address http://127.0.0.1:1 --max-jobs",
        f"{' '.join(MERGE)} ties --output out --scale",
    ),
    *(f"{' '.join(MERGE)} ties --output out {option}" for option in ("--memory", "--shard")),
)
FIELDS = (
    *("fit.rounds", "fit.batch_size", "fit.seed", "fit.tint_lr", "fit.correction_lr", "tint.rank"),
    *("fit.patience", "merge.scale", "objective.temperature", "objective.feature_weight"),
    *("cluster.workers", "cluster.threads_per_worker", "growth.tolerance"),
    "growth.target",
)


@pytest.mark.parametrize("number", ["nan", "inf", "-1", HUGE, "x"])
def test_what_is_no_number(number: str) -> None:
    for words in OPTIONS:
        *before, option = words.split()
        refused(*before, f"{option}={number}")
    if number != "-1":
        refused("submit", "job.yaml", "--address", "http://127.0.0.1:1", "--priority", number)
    refused(*MERGE, "ties", "--output", "out", "--parameter", f"density={number}")
    for field in FIELDS:
        refused("validate", "job.yaml", "--set", f"{field}={number}")
    refused("add-task", "tiny/v1", "three.yaml", "--set", f"growth.rounds={number}")


def test_a_huge_limit_is_all_jobs() -> None:
    assert len(call("ps", "--limit", HUGE, "--json").document) == 1


@pytest.mark.parametrize(
    "setting",
    [
        *("", "x", "=", "a=b", "tasks=1", "tasks.nope.expert=x", "fit.rounds", "fit.rounds=[1"),
        *("name=../x", f"name={LONG}", "base=file", "base=/dev/zero", "tasks.one.expert=pipe"),
        *(
            "tint.sites=nope",
            "tint.sites=[!",
            f"tint.sites={'*a' * 30}*b",
            f"tint.sites={'*a' * 2000}",
        ),
        *("objective.feature_site=*", "merge.method=nope", "cluster.address=nope://x"),
        *("tasks.one.pool.path=pipe.npz", "tasks.one.pool.path=/dev/zero"),
        *("tasks.one.pool.split=train[", f"tasks.one.pool.split=train[:{HUGE}%]"),
    ],
    ids=lambda setting: setting[:40],
)
def test_what_is_no_setting(setting: str) -> None:
    refused("validate", "job.yaml", "--set", setting)
    refused("add-task", "tiny/v1", "three.yaml", "--set", setting)


def test_what_else_is_nothing() -> None:
    two = ("refresh-task", "tiny/v1", "two")
    for words in (
        *(("compare", "tiny/v1", "--methods", name) for name in ("", ",", "nope", "all,nope")),
        *(("compare", "tiny/v1", "--plot", name) for name in ("x.foo", "nope/x.png", "file/x.png")),
        *(("artifacts", "pin", digits) for digits in ("", "zz", "%", "0" * 64, LONG)),
        *(("artifacts", "ls", "--kind", "nope"), ("ps", "--state", "nope"), ("methods", "nope")),
        *((*two, "--expert", name) for name in ("nope", "file", "pipe", LONG)),
        *((*two, "--pool", name) for name in ("nope", "full", "pipe.npz", "/dev/zero", LONG)),
        *(("rollback", "tiny/v1", "--to", name) for name in ("", "v9", f"v{HUGE}", LONG)),
        *(("export", "tiny/v1", "out", "--task", name) for name in ("", "nope", "../x", LONG)),
        *(("nope",), ("show",), ("completion", "nope"), ("run", "--from-mergekit", "x")),
        ("submit", "job.yaml", "--address", "nope://x"),
    ):
        refused(*words)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may become larger than this: writes fail as they do on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("limit", [0, 600, 3000])
def test_a_full_disk_leaves_nothing_half_written(limit: int) -> None:
    export, before = ("export", "store/merges/tiny/v1", "out"), left()
    for words in (export, (*export, "--task", "two"), (*MERGE, "average", "--output", "out")):
        with full_disk(limit):
            found = call(*words)
        assert (found.code, found.out) == (1, ""), found
        assert "error: " in found.err
        assert "internal error" not in found.err
        assert left() == before


def test_a_result_that_cannot_be_written_is_told() -> None:
    command = "from tintray.jobs.cli import main; raise SystemExit(main())"
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-c", command, "version", "--json"]
        found = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "error: standard output cannot be written: No space left on device\n"
    assert (found.returncode, found.stderr) == (1, said)
