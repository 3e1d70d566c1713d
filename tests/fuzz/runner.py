"""Inputs by the thousand, in processes of their own that the system ends where they hang."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from math import ceil
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tests.fuzz import fixtures
from tests.fuzz.guard import MEMORY, Guard, control_character, memory
from tests.fuzz.surface import Bench, Files, Surface, UnansweredError, lay
from tintray.errors import MAX_SENTENCE, TintrayError
from tintray.storage import secrets

COMPUTES, WAITS = 5.0, 60.0
"""Seconds of computing, and by the clock, that an input may take."""

_KEPT_OF_A_KIND = 3
_MOST_DEATHS = 50  # of one worker, before its other inputs are left out
_ROOT = Path(__file__).parents[2]
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Finding:
    """An input that was not answered well."""

    surface: str
    seed: int
    number: int
    how: str  # the drive that read it
    kind: str  # same text, same fault
    text: str  # all that is known of it

    def keep(self, files: Mapping[str, bytes], folder: Path) -> None:
        """Write the input and what is wrong with it below ``folder``; a few of each kind."""
        below = folder / f"{self.surface}-{hashlib.sha256(self.kind.encode()).hexdigest()[:8]}"
        if below.is_dir() and len(list(below.iterdir())) >= _KEPT_OF_A_KIND:
            return
        place = below / str(self.number)
        lay(place / "input", files or {"empty": b""})
        (place / "input.pickle").write_bytes(pickle.dumps(files))
        again = f"python -m tests.fuzz --replay {place}"
        (place / "finding.json").write_text(json.dumps({**asdict(self), "again": again}, indent=1))


def _finding(path: Path) -> Finding:
    fields = json.loads(path.read_text())
    del fields["again"]
    return Finding(**fields)


def _schedule(surfaces: Sequence[Surface], inputs: int) -> list[tuple[Surface, int]]:
    """``inputs`` inputs by their numbers, the surfaces mixed evenly, each by its weight."""
    total = sum(surface.weight for surface in surfaces)
    counts = [ceil(inputs * surface.weight / total) for surface in surfaces]
    found = [((n + 0.5) / count, i, n) for i, count in enumerate(counts) for n in range(count)]
    return [(surfaces[index], number) for _, index, number in sorted(found)[:inputs]]


def run(
    surfaces: Sequence[Surface],
    *,
    inputs: int,
    kept: Path,
    seconds: float = float("inf"),
    seed: int = 0,
    workers: int = 1,
    prepare: Callable[[Path], object] = fixtures.make,
) -> tuple[Counter[str], list[Finding]]:
    """Try inputs: how many of each surface were tried, and what was answered badly.

    That is kept below ``kept``, which is emptied first. ``prepare`` makes what inputs refer to.
    """
    kept = kept.resolve()  # each input has a current folder of its own
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    plan = _schedule(surfaces, inputs)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = Path(folder).resolve()
        seeds = _prepare(root, surfaces, prepare)
        _warm_up(surfaces, seeds, root)
        until = time.monotonic() + seconds
        crew = [_Worker(plan[n::workers], seeds, seed, root / str(n), kept) for n in range(workers)]
        for worker in crew:
            worker.start(0, until)
        while running := {w.process.sentinel: w for w in crew if w.process is not None}:
            ended = wait(list(running), timeout=30)
            for sentinel in ended:
                running[sentinel].look_after(until)
            if not ended:
                print(f"{sum(w.done for w in crew):,} inputs", file=sys.stderr, flush=True)
    counts = Counter(surface.name for w in crew for surface, _ in w.plan[: w.done])
    return counts, [_finding(path) for path in sorted(kept.rglob("finding.json"))]


def replay(surfaces: Sequence[Surface], place: Path) -> Finding | None:
    """Try an input again that was kept at ``place``; what is wrong with it, if anything is."""
    known = _finding(place / "finding.json")
    files = pickle.loads((place / "input.pickle").read_bytes())
    surface = next(surface for surface in surfaces if surface.name == known.surface)
    drives = {known.how: surface.drives[known.how]}
    only = replace(surface, mutate=lambda *_: files, drives=drives, folder=False)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        _, found = run([only], inputs=1, kept=Path(folder))
    return next(iter(found), None)


def _prepare(root: Path, surfaces: Sequence[Surface], make: Callable[[Path], object]) -> Any:
    """What the inputs refer to, and the seeds of each surface by its name.

    They are made in a child: threads that it leaves behind would not survive a fork.
    """

    def work() -> None:
        make(root / "fixtures")
        seeds = {surface.name: list(surface.seeds(root / "fixtures")) for surface in surfaces}
        (root / "seeds").write_bytes(pickle.dumps(seeds))

    child = _fork.Process(target=work)
    child.start()
    child.join()
    return pickle.loads((root / "seeds").read_bytes())


def _warm_up(surfaces: Sequence[Surface], seeds: Mapping[str, list[Files]], root: Path) -> None:
    """Let every drive read a sound input once: what it imports, its workers have from the start."""
    bench = Bench(root / "warm", root / "fixtures")
    bench.folder.mkdir()
    for surface in surfaces:
        first, *others = (drive for _, drive in surface.drives.values())
        for files in seeds[surface.name]:
            with _quiet(), _laid(bench, files):
                first(bench)
        for drive in others:  # these need not take every sound input
            with _quiet(), _laid(bench, seeds[surface.name][0]), suppress(Exception):
                drive(bench)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that the block writes, in C either, reaches the terminal."""
    before, null = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(null, stream)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, descriptor in enumerate(before, start=1):
            os.dup2(descriptor, stream)
            os.close(descriptor)
        os.close(null)


@contextmanager
def _laid(bench: Bench, files: Files) -> Iterator[None]:
    """The input alone in the folder of the bench, which is the current one in the block."""
    for entry in os.scandir(bench.folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()
    lay(bench.folder, files)
    bench.refusals.clear()
    secrets._learnt.clear()  # or each text is cleaned of those of all inputs before
    secrets._look_into.cache_clear()
    with chdir(bench.folder):
        yield


class _Worker:
    """A child process that tries its share of the inputs, and is replaced where it dies."""

    def __init__(
        self, plan: list[tuple[Surface, int]], seeds: Any, seed: int, root: Path, kept: Path
    ) -> None:
        self.plan, self._seeds, self._seed = plan, seeds, seed
        self._root, self._kept = root, kept
        self._behind = _fork.RawValue("q", 0)
        self._deaths = 0
        self.process: multiprocessing.process.BaseProcess | None = None

    @property
    def done(self) -> int:
        """How many inputs it has begun with."""
        return int(self._behind.value)

    def start(self, index: int, until: float) -> None:
        """Try the inputs from ``index`` on, until that time by the monotonic clock."""
        self.process = _fork.Process(target=self._work, args=(index, until), daemon=True)
        self.process.start()

    def look_after(self, until: float) -> None:
        """Begin the next process if the last one died, for it died of an input."""
        assert self.process is not None
        self.process.join()
        code, self.process = self.process.exitcode, None
        if not code:
            return
        hangs = {
            -signal.SIGPROF: f"hangs: it computes for more than {COMPUTES:g} s",
            -signal.SIGALRM: f"hangs: it waits for more than {WAITS:g} s",
        }
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        surface, number, files, how = self._input(self.done - 1)
        wrong = hangs.get(code, f"the process died ({name})")
        self._keep(surface, number, files, how, (f"{how}: {wrong}", wrong))
        self._deaths += 1
        if self._deaths < _MOST_DEATHS:
            self.start(self.done, until)

    def _input(self, index: int) -> tuple[Surface, int, Files, str]:
        surface, number = self.plan[index]
        return surface, number, *surface.make(self._seed, number, self._seeds[surface.name])

    def _keep(
        self, surface: Surface, number: int, files: Files, how: str, wrong: tuple[str, str]
    ) -> None:
        Finding(surface.name, self._seed, number, how, *wrong).keep(files, self._kept)

    # -- in the child ------------------------------------------------------------------------------

    def _work(self, start: int, until: float) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        # Deep down, so that a few ".." still end in a folder that may be written.
        bench = Bench(self._root / "own/a/b/c/input", self._root.parent / "fixtures")
        outside = self._root / "outside"
        for folder in (bench.folder, self._root / "own/home", self._root / "own/tmp", outside):
            folder.mkdir(parents=True)
        (outside / "secret").write_text("not to be read")
        _settle(self._root / "own")
        guard = Guard(self._root / "own", outside, self._root / "said")
        for index in range(start, len(self.plan)):
            if time.monotonic() > until:
                return
            surface, number, files, how = self._input(index)
            self._behind.value = index + 1
            wrong = _tried(surface, how, files, bench, guard)
            if wrong is not None:
                self._keep(surface, number, files, how, wrong)


def _settle(own: Path) -> None:
    """Keep what libraries write in folders of the worker, and its memory and signals in bounds."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_DATASETS_CACHE"):
        os.environ[name] = str(own / "home")
    os.environ["TMPDIR"] = tempfile.tempdir = str(own / "tmp")
    sys.dont_write_bytecode = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_DATASETS_CACHE = own / "home/datasets"
    most = memory("VmData") + 4 * MEMORY  # what takes less is measured afterwards
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # the system ends the process, whatever it does then


def _tried(
    surface: Surface, how: str, files: Files, bench: Bench, guard: Guard
) -> tuple[str, str] | None:
    """Let a drive read an input: kind and description of what was wrong, None if nothing was."""
    escaped: BaseException | None = None
    with _laid(bench, files), guard.watching(confined=surface.confined):
        signal.setitimer(signal.ITIMER_PROF, COMPUTES)
        signal.setitimer(signal.ITIMER_REAL, WAITS)
        try:
            surface.drives[how][1](bench)
        except BaseException as error:  # noqa: BLE001 - that nothing else escapes is what is tried
            escaped = error
        finally:
            for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
                signal.setitimer(timer, 0)
    for error in (*bench.refusals, escaped):
        wrong = None if error is None else _wrong(error)
        if wrong is not None:
            return wrong
    if guard.noticed:
        first = " ".join(guard.noticed[0].split()[:2])
        return f"{how}: {first}", "\n".join([*guard.noticed, guard.said()])
    return None


def _wrong(error: BaseException) -> tuple[str, str] | None:
    """What is wrong with an answer that is an error; None for one sentence."""
    if isinstance(error, TintrayError):
        said = str(error)
        if said.strip() and len(said) <= MAX_SENTENCE and control_character(said) is None:
            return None if "\n" not in said else ("two lines", said)
        return f"no sentence: {_place(error)}", f"{said[:2000]!a}"
    root = (error.__cause__ or error) if isinstance(error, UnansweredError) else error
    # Of a deep recursion the ends are enough.
    text = "".join(traceback.format_exception(root, limit=-40))
    return f"{type(root).__name__} at {_place(root)}", text[-8000:]


def _place(error: BaseException) -> str:
    """Where in our code an error was raised."""
    found = "outside"
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_ROOT):
            name = path.relative_to(_ROOT)
            if name.parts[0] in ("tintray", "storage", "jobs"):
                found = f"{name}:{frame.lineno} {frame.name}"
    return found
