"""Whether anything grows that should not: many rounds, and many jobs, one after another.

    python -m tests.soak [--rounds 1000] [--jobs 100] [--queued 100]

Real jobs over the tiny zoo of the tests. First one job of many rounds in this process, then one of
as many rounds whose worker is an actor of a real Ray; then many jobs in a row, each published, in
this process; then as many through a queue of a real Ray head, each with a driver of its own. As
they go on it is looked at memory, open files, threads, child processes, temporary files, and what
lies in Ray's object store. What the first fifth takes up counts as warming up: from then on files,
threads, processes, temporary files and objects must not grow at all, and memory by less than
``SLACK`` in all. A Ray head keeps seven logs of each job until it ends: these do not count. The
last line is one JSON object; the exit code is 1 if something grew.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.tiny_zoo import TinyZoo, make_zoo

SLACK = 16.0
"""MiB that memory may grow by after the first fifth: allocators, and what libraries remember."""
POOLED = 11
"""Files of a SQLite catalog at most: five connections have two each, and one in common."""
TASKS = ("two", "three")


@dataclass(frozen=True)
class Sample:
    """What this process, and what it started, holds at a moment."""

    rss: float  # MiB, of this process and its workers
    files: int
    threads: int
    processes: int  # children of this process, and theirs
    temporary: int
    objects: float  # MiB in Ray's object store


def take(folder: Path) -> Sample:
    """A sample; ``folder`` is where temporary files go."""
    import psutil

    gc.collect()
    me = psutil.Process()
    memory = me.memory_info().rss
    for one in me.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            memory += one.memory_info().rss if one.name().startswith("ray::") else 0
    return Sample(
        memory / 2**20,
        _files(),
        threading.active_count(),
        len(me.children(recursive=True)),
        _temporary(folder),
        _objects(),
    )


def _temporary(folder: Path) -> int:
    """Temporary files, without the logs that a Ray head keeps of each job until it ends."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum("logs" not in path.relative_to(folder).parts for path in files)


def _files() -> int:
    """Open files; those of a catalog count from where its pool could have no more of them.

    A pool opens its next connection when two threads first meet, which may be late in a job.
    """
    known = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    of_catalogs = sum(".db" in name.suffix for name in known)
    return len(known) - of_catalogs + max(0, of_catalogs - POOLED)


def _objects() -> float:
    """MiB in the object store of the Ray that this process is connected to, if it is to one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return 0.0
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    address = ray.get_runtime_context().gcs_address
    stats = get_memory_info_reply(get_state_from_address(address)).store_stats
    return float(stats.object_store_bytes_used) / 2**20


@dataclass(frozen=True)
class Trend:
    """How the samples of one part went: the most of its second fifth, the least of its last."""

    part: str
    steps: int
    seconds: float
    before: Sample
    after: Sample

    @property
    def grown(self) -> list[str]:
        """What has grown."""
        counts = ("files", "threads", "processes", "temporary", "objects")
        found = [name for name in counts if getattr(self.after, name) > getattr(self.before, name)]
        return found + ["rss"] * (self.after.rss - self.before.rss > SLACK)


def trend(part: str, steps: int, seconds: float, samples: list[Sample]) -> Trend:
    """Compare the most that the second fifth held with the least that the last does.

    A file being written, or a connection that is closed and made again, comes and goes in both.
    """
    fifth = max(1, len(samples) // 5)
    before, after = _each(max, samples[fifth : 2 * fifth]), _each(min, samples[-fifth:])
    return Trend(part, steps, seconds, before, after)


def _each(of: Callable[[Iterable[float]], float], samples: list[Sample]) -> Sample:
    """The least, or the most, of each number."""
    return Sample(**{
        name: of(getattr(sample, name) for sample in samples) for name in asdict(samples[0])
    })  # fmt: skip


# The parts


def rounds(zoo: TinyZoo, folder: Path, count: int, workers: int) -> Trend:
    """One job of many rounds, sampled as they end."""
    import tintray
    from tintray.jobs.events import RoundDone

    samples: list[Sample] = []
    every = max(1, count // 25)

    def hear(event: object) -> None:
        if isinstance(event, RoundDone) and event.round % every == 0:
            samples.append(take(folder / "tmp"))

    fit = {"rounds": count, "checkpoint_every": max(1, count // 10)}
    spec = zoo.spec(folder / "store", tasks=TASKS, fit=fit, cluster={"workers": workers})
    # Else objects of so small a model never reach the object store.
    os.environ.setdefault("RAY_max_direct_call_object_size", "1000")
    began = time.perf_counter()
    tintray.run(spec, on_event=hear)
    where = "in this process" if workers == 0 else "on Ray"
    return trend(f"rounds {where}", count, time.perf_counter() - began, samples)


def jobs(zoo: TinyZoo, folder: Path, count: int) -> Trend:
    """Jobs in a row, each with a round, a merge and another seed, sampled between them."""
    import tintray

    samples = []
    began = time.perf_counter()
    for seed in range(count):
        fit = {"rounds": 2, "seed": seed}
        tintray.run(zoo.spec(folder / "store", tasks=TASKS, fit=fit)).for_task("two")
        samples.append(take(folder / "tmp"))
    return trend("jobs in this process", count, time.perf_counter() - began, samples)


def queued(zoo: TinyZoo, folder: Path, count: int) -> Trend:
    """Jobs through a queue, sampled as each ends; the head's processes and files count."""
    import tintray
    from tests.ray_head import ray_head
    from tintray.jobs.queue.submission import set_limit

    samples: list[Sample] = []
    began = time.perf_counter()
    spec = zoo.spec(folder / "store", tasks=TASKS, fit={"rounds": 1})
    with ray_head(cpus=2, TMPDIR=str(folder / "tmp")) as head:
        entered = [tintray.submit(spec.changed(name=f"soak-{n}"), address=head.address)
                   for n in range(count)]  # fmt: skip
        set_limit(2, address=head.address, catalog=spec.catalog)
        for job in entered:
            assert job.wait(600).state == "succeeded", job
            samples.append(take(folder / "tmp"))
    return trend("jobs through a queue", count, time.perf_counter() - began, samples)


@contextmanager
def place() -> Iterator[Path]:
    """A folder for all that is written, temporary files of this process and its children too."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        try:
            yield folder
        finally:
            tempfile.tempdir = None
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before


def soak(count: int, jobs_in_row: int, jobs_queued: int) -> list[Trend]:
    """All parts; one of no steps is left out."""
    parts: list[tuple[int, Callable[[TinyZoo, Path], Trend]]] = [
        (count, lambda zoo, folder: rounds(zoo, folder, count, 0)),
        (count, lambda zoo, folder: rounds(zoo, folder, count, 1)),
        (jobs_in_row, lambda zoo, folder: jobs(zoo, folder, jobs_in_row)),
        (jobs_queued, lambda zoo, folder: queued(zoo, folder, jobs_queued)),
    ]
    found = []
    for steps, part in parts:
        if steps:
            with place() as folder:
                found.append(part(make_zoo(folder / "zoo"), folder))
            print(told(found[-1]), flush=True)
    return found


def told(part: Trend) -> str:
    """A part as people read it."""
    one, other = part.before, part.after
    counts = ", ".join(
        f"{name} {getattr(one, name):g} → {getattr(other, name):g}"
        for name in ("files", "threads", "processes", "temporary", "objects")
    )
    state = f"GREW: {', '.join(part.grown)}" if part.grown else "flat"
    return (
        f"{part.part}: {part.steps} in {part.seconds:.0f} s; rss {one.rss:.1f} → {other.rss:.1f} "
        f"MiB, {counts}: {state}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Rounds and jobs in a row: what grows?")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--queued", type=int, default=100)
    given = parser.parse_args()
    os.environ.setdefault("TINTRAY_CONFIG", os.devnull)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = soak(given.rounds, given.jobs, given.queued)
    grown: dict[str, Any] = {part.part: part.grown for part in found if part.grown}
    rss = {part.part: round(part.after.rss - part.before.rss, 2) for part in found}
    steps = {part.part: part.steps for part in found}
    print(json.dumps({"steps": steps, "rss_mib": rss, "grown": grown, "flat": not grown}))
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
