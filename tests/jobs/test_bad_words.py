"""Whatever is typed in the wrong place: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest

from tests.answers import call
from tests.sorts import SORTS, make_zoo, write_yaml

PATIENCE = 60
"""Seconds after which a command hangs: a pipe without a writer would be waited for without end."""
LONG = "a" * 5000
HUGE = "9" * 400


@dataclass(frozen=True)
class Place:
    """A folder with a published merge, its job, and things that are no merges and no jobs."""

    folder: Path
    job: Path
    third: Path

    @property
    def left(self) -> set[Path]:
        """All files that are there, but for what reading leaves behind a database."""
        return {path for path in self.folder.rglob("*") if not path.name.startswith("catalog.db-")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    zoo = make_zoo("pictures", folder / "zoo")
    sort = SORTS["block"]
    made = Place(
        folder,
        write_yaml(folder / "job.yaml", sort.job(zoo, folder / "store")),
        write_yaml(folder / "three.yaml", sort.task(zoo, "three")),
    )
    assert call("run", made.job).code == 0
    (folder / "file").write_text("hello")
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("hello")
    (folder / "folder.yaml").mkdir()
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    for name in ("pipe", "pipe.yaml", "pipe.npz"):
        os.mkfifo(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TINTRAY_STORE", str(folder / "store"))
        yield made


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


def refused(place: Place, *words: object) -> str:
    """The sentence with which a command is refused; it has written nothing."""
    before = place.left
    with patience():
        found = call(*words)
    assert found.code == 2, (words, found)
    assert found.out == ""
    assert "internal error" not in found.err
    assert "Traceback" not in found.err
    assert place.left == before
    (sentence,) = (line for line in found.err.splitlines() if line.startswith("error: "))
    assert len(sentence) <= 520
    return sentence


MERGES = [
    *("", "nope", "tiny/v99", f"tiny/v{HUGE}", "tiny/v-1", "tiny/vx", "tiny/v１", "tiny/v1/extra"),
    *(
        "/",
        "../tiny",
        "./nope",
        "./file",
        "./full",
        "./pipe",
        "/dev/zero",
        "/dev/null",
        "~nobody/x",
    ),
    *("file:///nope", "file://", "file://host/x", "s3://", "http://x", LONG, "é", "%", "'; --"),
    *("./store", "store/merges/tiny", "store/merges/tiny/v1/manifest.json"),
]


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: repr(merge)[:30])
def test_what_is_no_merge(place: Place, merge: str) -> None:
    task = ("two",)
    for words in (
        *(("show", merge), ("eval", merge), ("compare", merge), ("history", merge)),
        ("delete", merge),
        *(("export", merge, "out"), ("copy", merge, "out"), ("artifacts", "verify", merge)),
        *(("refresh-task", merge, *task), ("remove-task", merge, *task), ("rollback", merge)),
        *(("add-task", merge, place.third), ("diff-merges", merge, "tiny/v1")),
    ):
        refused(place, *words)


@pytest.mark.parametrize("folder", ["", "file", "full", "file/x", "pipe", "/dev/null", LONG])
def test_what_is_no_new_folder(place: Place, folder: str) -> None:
    zoo = place.folder / "zoo"
    experts = ("--base", zoo / "base", "--method", "average", zoo / "one", zoo / "one")
    for words in (
        *(("export", "tiny/v1", folder), ("export", "tiny/v1", folder, "--task", "two")),
        ("merge", *experts, "--output", folder),
    ):
        refused(place, *words)


@pytest.mark.parametrize(
    "file", ["nope.yaml", "full", "pipe.yaml", "folder.yaml", "binary.yaml", "/dev/zero", "", LONG]
)
def test_what_is_no_job_file(place: Place, file: str) -> None:
    for words in (
        *(("run", file), ("validate", file), ("plan", file), ("submit", file)),
        *(("add-task", "tiny/v1", file), ("run", "--from-mergekit", file, "--output", "out")),
    ):
        refused(place, *words)


@pytest.mark.parametrize("job", ["", "nope", "%", "_", "latest/x", LONG, "é", HUGE])
def test_what_is_no_job(place: Place, job: str) -> None:
    for command in ("status", "watch", "logs", "wait", "cancel", "resume", "retry"):
        refused(place, command, job)
    refused(place, "diff", job, "x")


@pytest.mark.parametrize(
    "catalog", ["nope", "mysql://x", "sqlite://", "sqlite:///file", "sqlite:///full", f"x{LONG}",
                f"sqlite:///{LONG}", "sqlite:////dev/null", "postgresql+psycopg://h:99999/x"]
)  # fmt: skip
def test_what_is_no_catalog(place: Place, catalog: str) -> None:
    for words in (
        *(("list",), ("show", "tiny"), ("ps",), ("status", "x"), ("queue",), ("cancel", "x")),
        *(("gc",), ("artifacts", "ls"), ("db", "check"), ("rollback", "tiny"), ("delete", "tiny")),
    ):
        refused(place, *words, "--catalog", catalog)


OPTIONS = {
    "wait": ("wait", "nope", "--timeout"),
    "age": ("gc", "--older-than"),
    "jobs": ("queue", "--address", "http://127.0.0.1:1", "--max-jobs"),
    "priority": ("submit", "job.yaml", "--address", "http://127.0.0.1:1", "--priority"),
    "seconds": ("plan", "job.yaml", "--calibrate"),
}
FIELDS = (
    *("fit.rounds", "fit.batch_size", "fit.seed", "fit.tint_lr", "fit.correction_lr", "tint.rank"),
    *(
        "fit.patience",
        "merge.scale",
        "objective.temperature",
        "objective.feature_weight",
        "tint.max_parameters",
    ),
    *("cluster.workers", "cluster.threads_per_worker", "growth.tolerance", "growth.target"),
)


@pytest.mark.parametrize("number", ["nan", "inf", "-1", HUGE, "x"])
def test_what_is_no_number(place: Place, number: str) -> None:
    for name, words in OPTIONS.items():
        if (name, number) != ("priority", "-1"):
            refused(place, *words, number)
    zoo = place.folder / "zoo"
    experts = ("--base", zoo / "base", "--method", "ties", zoo / "one", zoo / "one")
    for option in ("--scale", "--memory", "--shard"):
        refused(place, "merge", *experts, "--output", "out", f"{option}={number}")
    refused(place, "merge", *experts, "--output", "out", "--parameter", f"density={number}")
    for field in FIELDS:
        refused(place, "validate", place.job, "--set", f"{field}={number}")
    change = ("add-task", "tiny/v1", place.third)
    refused(place, *change, "--set", f"growth.rounds={number}")


def test_a_huge_limit_is_all_jobs(place: Place) -> None:
    assert len(call("ps", "--limit", HUGE, "--json").document) == 1


@pytest.mark.parametrize(
    "setting",
    [
        *("", "x", "=", "a=b", "tasks=1", "tasks.nope.expert=x", "fit.rounds", "fit.rounds=[1"),
        *("name=../x", f"name={LONG}", "base=file", "base=/dev/zero", "tasks.one.expert=pipe"),
        *("tint.site=nope", "tint.site=[!", f"tint.site={'*a' * 30}*b", f"tint.site={'*a' * 2000}"),
        *("objective.feature_site=*", "merge.method=nope", "cluster.address=nope://x"),
        *("tasks.one.pool.path=pipe.npz", "tasks.one.pool.path=/dev/zero"),
        *("tasks.one.pool.split=train[", f"tasks.one.pool.split=train[:{HUGE}%]"),
    ],
    ids=lambda setting: setting[:40],
)
def test_what_is_no_setting(place: Place, setting: str) -> None:
    refused(place, "validate", place.job, "--set", setting)
    refused(place, "add-task", "tiny/v1", place.third, "--set", setting)


def test_what_else_is_nothing(place: Place) -> None:
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
        ("submit", place.job, "--address", "nope://x"),
    ):
        refused(place, *words)


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
def test_a_full_disk_leaves_nothing_half_written(place: Place, limit: int) -> None:
    zoo, merge = place.folder / "zoo", "store/merges/tiny/v1"
    experts = ("--base", zoo / "base", "--method", "average", zoo / "one", zoo / "one")
    before = place.left
    for words in (
        *(("export", merge, "out"), ("export", merge, "out", "--task", "two")),
        ("merge", *experts, "--output", "out"),
    ):
        with full_disk(limit):
            found = call(*words)
        assert (found.code, found.out) == (1, ""), found
        assert "error: " in found.err
        assert "internal error" not in found.err
        assert place.left == before


def test_a_result_that_cannot_be_written_is_told() -> None:
    command = "from tintray.jobs.cli import main; raise SystemExit(main())"
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [sys.executable, "-c", command, "version", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = "error: standard output cannot be written: No space left on device\n"
    assert (found.returncode, found.stderr) == (1, said)
