"""Inputs by the thousand, in processes of their own that are watched for time, memory and death."""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import fixtures
from tests.fuzz.guard import MEMORY, Guard
from tests.fuzz.surface import Bench, Files, Surface, laid
from tests.fuzz.trial import Finding, accepted, tried

SECONDS = 5.0
"""Of computing, or of waiting, that an input may take."""

_BEGINNING = 60.0  # seconds that a worker takes to begin, at most
_MOST_DEATHS = 30  # of workers on one surface, before its other inputs are left out
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "COLUMNS": "200",
    "TERM": "dumb",
    "TINTRAY_CONFIG": os.devnull,
}

Entry = tuple[Surface, int]


@dataclass
class Result:
    """What a run came to."""

    surfaces: Counter[str]
    findings: list[Finding]


def schedule(surfaces: Sequence[Surface], inputs: int) -> list[Entry]:
    """``inputs`` inputs by their numbers, the surfaces mixed evenly, each by its weight."""
    total = sum(surface.weight for surface in surfaces)
    found: list[tuple[float, int, int]] = []
    for index, surface in enumerate(surfaces):
        count = math.ceil(inputs * surface.weight / total)
        found += [((number + 0.5) / count, index, number) for number in range(count)]
    return [(surfaces[index], number) for _, index, number in sorted(found)[:inputs]]


def run(
    surfaces: Sequence[Surface],
    *,
    inputs: int,
    seconds: float | None,
    seed: int,
    kept: Path,
    workers: int = 2,
    tell: Callable[[str], None] = lambda _: None,
    prepare: Callable[[Path], object] = fixtures.make,
) -> Result:
    """Try inputs; what was answered badly is kept below ``kept``, which is emptied first.

    ``prepare`` makes what inputs refer to.
    """
    kept = kept.resolve()  # each input has a current folder of its own
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    os.environ.update(_ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = Path(folder).resolve()
        _in_a_process(lambda: _prepare(root, surfaces, prepare))
        _warm_up(surfaces, root)
        until = None if seconds is None else time.monotonic() + seconds
        plan = schedule(surfaces, inputs)
        crew = [_Worker(n, workers, plan, seed, root, kept) for n in range(workers)]
        told = time.monotonic()
        while sum(worker.looked_after(until) for worker in crew):  # each of them, every time
            time.sleep(0.05)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                tell(
                    f"{sum(w.done for w in crew):,} inputs, {sum(w.faults for w in crew):,} faults"
                )
        counts: Counter[str] = Counter()
        for worker in crew:
            counts += worker.counts()
    return Result(counts, [_read(path) for path in sorted(kept.rglob("finding.json"))])


def replay(surfaces: Sequence[Surface], place: Path) -> Finding | None:
    """Try an input again that was kept at ``place``; what is wrong with it, if anything is."""
    known = _read(place / "finding.json")
    surface = next(s for s in surfaces if s.name == known.surface)
    chosen = [Replayed(surface, laid(place / "input"), known.how)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        found = run(chosen, inputs=1, seconds=None, seed=known.seed, kept=Path(folder), workers=1)
    return found.findings[0] if found.findings else None


class Replayed(Surface):
    """A surface with one input and one drive."""

    def __init__(self, of: Surface, files: Files, how: str) -> None:
        super().__init__(of.name, 1, of.seeds, of.mutate, {how: of.drives[how]}, of.confined)
        object.__setattr__(self, "files", files)

    def make(self, seed: int, number: int, seeds: Sequence[Files]) -> tuple[Files, str]:
        """The input that was kept."""
        files: Files = vars(self)["files"]
        return files, next(iter(self.drives))


def _read(path: Path) -> Finding:
    fields = json.loads(path.read_text())
    fields.pop("again", None)
    return Finding(**fields)


def _prepare(root: Path, surfaces: Sequence[Surface], make: Callable[[Path], object]) -> None:
    make(root / "fixtures")
    seeds = {surface.name: list(surface.seeds(root / "fixtures")) for surface in surfaces}
    (root / "seeds").write_bytes(pickle.dumps(seeds))


def _warm_up(surfaces: Sequence[Surface], root: Path) -> None:
    """Let every drive read a sound input once: what it imports, its workers have from the start."""
    bench = Bench(root / "warm", root / "fixtures")
    bench.folder.mkdir()
    seeds = _loaded(root)
    here, streams = Path.cwd(), [os.dup(1), os.dup(2)]
    said = os.open(root / "said", os.O_RDWR | os.O_CREAT)
    try:
        for stream in (1, 2):
            os.dup2(said, stream)
        for surface in surfaces:
            first = next(iter(surface.drives))
            for files in seeds[surface.name]:
                accepted(surface, first, files, bench)
            for how in surface.drives:  # the others need not take every sound input
                with suppress(Exception):
                    accepted(surface, how, seeds[surface.name][0], bench)
    except Exception as error:
        raise RuntimeError(f"a sound input of {surface.name} is refused: {error}") from error
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(here)
        for stream, before in enumerate(streams, start=1):
            os.dup2(before, stream)


def _loaded(root: Path) -> dict[str, list[Files]]:
    found: dict[str, list[Files]] = pickle.loads((root / "seeds").read_bytes())
    return found


def _in_a_process(work: Callable[[], None]) -> None:
    """Do something in a child: threads that it leaves behind would not survive a fork."""
    child = os.fork()
    if child == 0:
        _ended(work)
    status = os.waitpid(child, 0)[1]
    if status:
        raise RuntimeError(f"what the inputs refer to could not be made ({status})")


def _ended(work: Callable[[], None]) -> None:
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - the end of a child
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


_STATE = struct.Struct("qqqdd")  # index, phase, faults, when it began, CPU seconds by then
_BEGINS, _TRYING, _OVER = 0, 1, 2


class _Worker:
    """A child process that tries every n-th input, and is replaced where it hangs or dies."""

    def __init__(
        self, number: int, of: int, plan: list[Entry], seed: int, root: Path, kept: Path
    ) -> None:
        self._mine = plan[number::of]
        self._seed, self._kept = seed, kept
        self._fixtures, self._seeds = root / "fixtures", _loaded(root)
        self._root = root / f"worker-{number}"
        self._memory = mmap.mmap(-1, _STATE.size)
        self._skipped: set[int] = set()
        self._deaths: Counter[str] = Counter()
        self._faults_before = 0
        self._stopping = False
        self._start(0)

    @property
    def done(self) -> int:
        """How many inputs are behind it."""
        return max(0, _STATE.unpack(self._memory[:])[0])

    @property
    def faults(self) -> int:
        """How many inputs were answered badly."""
        return self._faults_before + int(_STATE.unpack(self._memory[:])[2])

    def counts(self) -> Counter[str]:
        """How many inputs were tried of each surface."""
        tried_ones = (i for i in range(self.done) if i not in self._skipped)
        return Counter(self._mine[index][0].name for index in tried_ones)

    def looked_after(self, until: float | None) -> bool:
        """Whether there is more to do; ends a child that takes too much, begins the next."""
        if self._child is None:
            return False
        index, phase, faults, began, computed = _STATE.unpack(self._memory[:])
        ended, status = os.waitpid(self._child, os.WNOHANG)
        wrong = None
        if ended:
            if phase == _OVER and status == 0:
                self._child = None
                return False
            wrong = f"the process died ({_death(status)})"
        elif until is not None and time.monotonic() > until:
            self._end()
            self._child = None
            return False
        else:
            wrong = self._too_much(phase, began, computed)
            if wrong is None:
                return True
            self._end()
        if phase == _BEGINS:
            said = self._root / "said"
            told = said.read_text(errors="replace")[-3000:] if said.is_file() else ""
            raise RuntimeError(f"a worker cannot begin: {wrong}\n{told}")
        self._faults_before += faults + 1
        self._keep(index, wrong)
        self._start(index + 1)
        return True

    def _too_much(self, phase: int, began: float, computed: float) -> str | None:
        now = time.monotonic()
        if phase == _BEGINS:
            return "it takes too long to begin" if now - began > _BEGINNING else None
        if phase == _OVER:
            return None
        used, resident, state = _usage(self._child or 0)
        if used - computed > SECONDS:
            return f"hangs: it computes for more than {SECONDS:g} s"
        if state == "R" or used > self._moved[0]:
            self._moved = (used, now)
        if now - max(began, self._moved[1]) > SECONDS:
            return f"hangs: it waits for more than {SECONDS:g} s"
        self._baseline = self._baseline or resident
        if resident - self._baseline > MEMORY + (256 << 20):  # the child itself measures its peak
            return f"takes more than {MEMORY >> 20:,} MiB"
        return None

    def _keep(self, index: int, wrong: str) -> None:
        surface, number = self._mine[index]
        files, how = surface.make(self._seed, number, self._seeds[surface.name])
        kind = f"{how}: {wrong}"
        Finding(surface.name, self._seed, number, how, kind, wrong).keep(files, self._kept)
        self._deaths[surface.name] += 1
        if self._deaths[surface.name] == _MOST_DEATHS:
            later = range(index + 1, len(self._mine))
            self._skipped.update(i for i in later if self._mine[i][0].name == surface.name)

    def _start(self, index: int) -> None:
        self._memory[:] = _STATE.pack(index, _BEGINS, 0, time.monotonic(), 0.0)
        self._moved, self._baseline = (0.0, time.monotonic()), 0
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _ended(lambda: self._work(index))
        self._child: int | None = child

    def _end(self) -> None:
        assert self._child is not None
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)

    # -- in the child ------------------------------------------------------------------------------

    def _work(self, start: int) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        # Deep down, so that a few ".." still end in a folder that may be written.
        bench = Bench(self._root / "own/a/b/c/input", self._fixtures)
        outside = self._root / "outside"
        for folder in (bench.folder, self._root / "own/home", self._root / "own/tmp", outside):
            folder.mkdir(parents=True)
        (outside / "secret").write_text("not to be read")
        _settle(self._root / "own")
        guard = Guard((self._root / "own",), outside, self._root / "said")
        seeds = self._seeds
        faults = 0
        for index in range(start, len(self._mine)):
            if index in self._skipped:
                continue
            surface, number = self._mine[index]
            files, how = surface.make(self._seed, number, seeds[surface.name])
            now = (time.monotonic(), time.process_time())
            self._memory[:] = _STATE.pack(index, _TRYING, faults, *now)
            wrong = tried(surface, how, files, bench, guard)
            if wrong is not None:
                faults += 1
                found = Finding(surface.name, self._seed, number, how, *wrong)
                found.keep(files, self._kept)
        self._memory[:] = _STATE.pack(len(self._mine), _OVER, faults, 0.0, 0.0)


def _settle(own: Path) -> None:
    """Keep what libraries write for themselves in folders of the worker."""
    home = str(own / "home")
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_DATASETS_CACHE"):
        os.environ[name] = home
    os.environ["TMPDIR"] = tempfile.tempdir = str(own / "tmp")
    sys.dont_write_bytecode = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_DATASETS_CACHE = own / "home/datasets"


def _usage(process: int) -> tuple[float, int, str]:
    """Seconds that a process has computed, bytes that it has in memory, and its state."""
    with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    computed = (int(fields[11]) + int(fields[12])) / ticks
    return computed, int(fields[21]) * mmap.PAGESIZE, fields[0]


def _death(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def listing(findings: Sequence[Finding]) -> Iterator[str]:
    """One line for each kind of finding, the most frequent first."""
    kinds = Counter((found.surface, found.kind) for found in findings)
    for (surface, kind), count in kinds.most_common():
        yield f"{surface}: {kind} ({count} kept)"
