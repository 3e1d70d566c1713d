"""Failures while running: exit code 1, one sentence, the job failed, and never half a merge."""

from __future__ import annotations

import ctypes
import json
import re
import resource
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import Published
from tests.tiny_zoo import TinyZoo
from tintray.errors import StorageError, TintrayError
from tintray.jobs import api
from tintray.jobs.cli import main
from tintray.jobs.events import PhaseStarted, TaskPrepared
from tintray.storage.artifacts.publish import list_merges
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog

COMMAND = [sys.executable, "-c", "from tintray.jobs.cli import main; raise SystemExit(main())"]
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


@pytest.fixture
def zoo(tiny: TinyZoo, tmp_path: Path) -> TinyZoo:
    """A zoo of one's own, for its job file."""
    return tiny.copy(tmp_path / "zoo")


def last_line(text: str) -> str:
    """What the user reads last: a sentence, and no traceback before it."""
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


def damage(path: Path, bits: int = 1) -> None:
    """Change the last byte of a file that is not to be written to."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= bits
    path.write_bytes(data)


def ending(catalog: str) -> tuple[str, str]:
    """How the only job of a catalog ended, and why."""
    with Catalog.open(catalog, create=False) as opened:
        (job,) = opened.jobs.all()
        assert opened.merges.all() == []
        return str(job.state), opened.jobs.events(job.id)[-1].reason


def nothing_published(store: Path) -> bool:
    return not list(store.glob("merges/**/*")) and not list_merges(open_store(str(store)))


# The fit


def test_a_loss_that_is_not_finite_ends_the_job(
    zoo: TinyZoo, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = zoo.job_file(
        tmp_path / "store", tint={"sites": "vit.layers.0"}, fit={"tint_lr": 1e9, "rounds": 50}
    )
    assert main(["run", str(path)]) == 1
    out, err = capfd.readouterr()
    said = last_line(err)
    assert out == ""
    assert re.match(r"error: task '.*is not finite.*fit\.tint_lr", said)
    assert nothing_published(tmp_path / "store")
    state, reason = ending(f"sqlite:///{tmp_path}/store/catalog.db")
    assert (state, reason) == ("failed", said.removeprefix("error: "))
    assert main(["run", str(path), "--debug"]) == 1
    assert "Traceback" in capfd.readouterr().err


# The store


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_store_below_a_file_is_refused(
    zoo: TinyZoo, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "file").write_text("")
    path = zoo.job_file(tmp_path / "file" / "store")
    assert main([command, str(path)]) == 2
    assert str(tmp_path / "file") in last_line(capfd.readouterr().err)


def without_override() -> None:
    """Make the next program obey permission bits even where tests run as root."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def test_a_read_only_store_is_refused(zoo: TinyZoo, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o555)
    path = zoo.job_file(store, catalog=f"sqlite:///{tmp_path}/catalog.db")
    done = subprocess.run(
        [*COMMAND, "run", str(path)],
        preexec_fn=without_override,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = last_line(done.stderr)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said.startswith(f"error: the artifact store {store}")
    assert "denied" in said.lower() or "read-only" in said.lower()
    assert list(store.iterdir()) == []


def test_a_catalog_that_may_only_be_read_is_read(published: Published, tmp_path: Path) -> None:
    """A file and a folder without the right to write, alone and while somebody else writes."""
    folder = tmp_path / "catalog"
    folder.mkdir()
    file = Path(published.spec.catalog.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as there, closing(sqlite3.connect(folder / file.name)) as c:
        there.backup(c)
        c.execute("PRAGMA journal_mode = WAL")
    (folder / file.name).chmod(0o444)
    folder.chmod(0o555)
    url, ref = f"sqlite:///{folder}/{file.name}", f"{published.spec.name}/v1"

    def asked(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *words, "--catalog", url]
        return subprocess.run(
            command, preexec_fn=without_override, capture_output=True, text=True, timeout=60
        )

    def jobs() -> int:
        done = asked("ps", "--json")
        assert done.returncode == 0, done.stderr
        return len(json.loads(done.stdout))

    for words in (["list"], ["history", ref], ["show", ref]):
        assert (done := asked(*words)).returncode == 0, done.stderr
        assert published.spec.name in done.stdout
    assert [path.name for path in folder.iterdir()] == [file.name]
    assert jobs() == 1
    folder.chmod(0o755)
    (folder / file.name).chmod(0o644)
    with Catalog.open(url) as catalog:
        catalog.jobs.create("another", {}, str(tmp_path), digest="0" * 64)
        folder.chmod(0o555)
        assert jobs() == 2, "what is in the log of whoever writes is seen"
    assert jobs() == 2
    said = last_line(asked("cancel", "another").stderr)
    assert said.startswith(f"error: the catalog {url} cannot be used: attempt to write a readonly")


@contextmanager
def files_no_larger_than(size: int) -> Iterator[Callable[[], None]]:
    """A switch after which no file of this process may grow beyond ``size``, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_store_that_fills_up_with_its_catalog_is_still_what_is_named(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    """The job's end can no longer be written down; what the user hears is why it ended."""
    spec = tiny.spec(tmp_path / "store")
    with files_no_larger_than(512) as fill_up:

        def on_event(event: object) -> None:
            if isinstance(event, PhaseStarted) and event.phase == "preparing":
                fill_up()

        with pytest.raises(StorageError, match=rf"^the artifact store {tmp_path}/store[^\n]*$"):
            api.run(spec, on_event=on_event)
    assert nothing_published(tmp_path / "store")


@pytest.mark.parametrize("broken", ["blobs", "merges"])
def test_a_store_that_breaks_while_publishing_leaves_no_merge(
    tiny: TinyZoo, tmp_path: Path, broken: str
) -> None:
    store = tmp_path / "store"
    spec = tiny.spec(store)

    def on_event(event: object) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "publishing":
            if (store / broken).exists():
                (store / broken).rename(tmp_path / broken)
            (store / broken).write_text("not a folder")

    with pytest.raises(StorageError, match="the artifact store") as raised:
        api.run(spec, on_event=on_event)
    assert ending(spec.catalog) == ("failed", str(raised.value))
    (store / broken).unlink()
    if (tmp_path / broken).exists():
        (tmp_path / broken).rename(store / broken)
    assert nothing_published(store)
    # Mended, the same job runs to its end; the version that was reserved is not given again.
    assert api.run(spec).version in ("v1", "v2")
    assert [ref.name for ref in list_merges(open_store(str(store)))] == ["tiny"]


SEVERAL = (
    "import sys; from tintray.jobs.cli import main; print([main(['run', j]) for j in sys.argv[1:]])"
)
ROOM = {"small": "64k", "large": "160k"}


def test_a_full_disk_is_said_to_be_full(zoo: TinyZoo, tmp_path: Path) -> None:
    """On a real file system that the plan finds too small, and one that fills up all the same.

    Their catalogs are outside of them. One process mounts both disks for itself and runs both jobs.
    """
    own = ["unshare", "--mount", "--map-root-user"]
    mounts, jobs = [], []
    for name, room in ROOM.items():
        disk = tmp_path / name
        disk.mkdir()
        mounts.append(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)])
        at_once = {"restarts": 0}  # else it waits for room
        catalog = f"sqlite:///{tmp_path}/{name}.db"
        path = zoo.job_file(disk / "store", catalog=catalog, cluster=at_once)
        jobs.append(path.rename(path.with_name(f"{name}.yaml")))
    if (
        not shutil.which("unshare")
        or subprocess.run([*own, *mounts[0]], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine does not let a process mount a file system of its own")
    script = " && ".join(
        map(shlex.join, [*mounts, [sys.executable, "-c", SEVERAL, *map(str, jobs)]])
    )
    done = subprocess.run(
        [*own, "sh", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "[2, 1]\n", done.stderr
    assert "Traceback" not in done.stderr
    small, large = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert small.startswith("error: the job does not fit: the task vectors take")
    assert "64 KiB are free" in small
    assert "a store with more room" in small
    assert large.startswith(f"error: the artifact store {tmp_path / 'large' / 'store'}")
    assert "full" in large.lower() or "no space left" in large.lower()
    for name, said in (("small", small), ("large", large)):
        state, reason = ending(f"sqlite:///{tmp_path}/{name}.db")
        assert (state, reason) == ("failed", said.removeprefix("error: "))


# What was published


@pytest.mark.parametrize("name", ["backbone.safetensors", "tints/five.safetensors"])
def test_a_damaged_merge_is_named_and_not_used(
    published: Published, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    folder = Path(shutil.copytree(published.folder, tmp_path / "merge"))
    damage(folder / name)
    place = ["--store", str(published.spec.store)]
    export = ["export", str(folder), "--task", "five", str(tmp_path / "out"), *place]
    for args in (["eval", str(folder), *place], export):
        code = main(args)
        out, err = capfd.readouterr()
        assert (code, out) == (1, ""), err
        assert name in last_line(err) and "damaged" in last_line(err)
    assert not (tmp_path / "out").exists()


def test_a_damaged_cache_never_reaches_a_merge(tiny: TinyZoo, tmp_path: Path) -> None:
    """Self-labels whose blob was altered: the job says so, or computes them again."""
    spec = tiny.spec(tmp_path)
    told: list[object] = []
    first = api.run(spec)
    with Catalog.open(spec.catalog, create=False) as catalog:
        labels = [found.sha256 for found in catalog.artifacts.all("self-labels")]
    for sha256 in labels:
        damage(tmp_path / "blobs" / sha256[:2] / sha256, 0x40)

    try:
        second = api.run(spec, on_event=told.append)
    except StorageError as error:
        assert any(sha256 in str(error) for sha256 in labels), error
        return
    assert not any(event.cached for event in told if isinstance(event, TaskPrepared))
    assert [task.merged for task in second.tasks] == [task.merged for task in first.tasks]


# The driver


@contextmanager
def fitting_forever(zoo: TinyZoo, store: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver in a process of its own, in the middle of its fit."""
    path = zoo.job_file(store, fit={"rounds": 1_000_000})
    driver = subprocess.Popen(
        [*COMMAND, "run", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while state_of(store) != "fitting":
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield driver
    finally:
        driver.kill()
        driver.communicate()


def state_of(store: Path) -> str | None:
    if not (store / "catalog.db").exists():
        return None
    try:
        with Catalog.open(f"sqlite:///{store}/catalog.db", create=False) as catalog:
            return next((str(job.state) for job in catalog.jobs.all()), None)
    except TintrayError:  # its tables are being made just now
        return None


def test_a_killed_driver_leaves_no_merge_and_nothing_in_the_way(
    zoo: TinyZoo, tmp_path: Path, published: Published
) -> None:
    store = tmp_path / "store"
    with fitting_forever(zoo, store) as driver:
        driver.send_signal(signal.SIGKILL)
        assert driver.wait(30) == -signal.SIGKILL
    assert nothing_published(store)
    with Catalog.open(f"sqlite:///{store}/catalog.db", create=False) as catalog:
        assert catalog.merges.all() == []
    events: list[object] = []
    summary = api.run(zoo.spec(store), on_event=events.append)
    assert all(event.cached for event in events if isinstance(event, TaskPrepared))
    assert [task.merged for task in summary.tasks] == [t.merged for t in published.summary.tasks]
    assert [ref.name for ref in list_merges(open_store(str(store)))] == ["tiny"]
