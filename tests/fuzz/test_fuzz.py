"""A short run over every surface, and a proof that the suite sees what it looks for."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fuzz import guard, runner
from tests.fuzz.surface import Bench, Files, Surface
from tests.fuzz.surfaces import SURFACES
from tintray.errors import InputError

_ROOT = Path(__file__).parents[2]


def test_every_surface_answers_damaged_inputs(tmp_path: Path) -> None:
    """As ``make fuzz``, with few inputs."""
    words = ("--inputs", "400", "--workers", "1", "--kept", str(tmp_path / "kept"))
    command = [sys.executable, "-m", "tests.fuzz", *words]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["inputs"] == 400 and summary["findings"] == 0
    assert summary["surfaces"].keys() == {surface.name for surface in SURFACES}


def _change() -> None:
    """As a library in C does, of which no audit hook hears."""
    ctypes.CDLL(None).truncate(b"../../../../../outside/secret", 3)


def _ask() -> None:
    with suppress(EOFError):
        input("y/n?")


def _take() -> None:
    """New memory: malloc may give what this process, with all tests before, has had already."""
    with mmap.mmap(-1, 100 << 20) as taken:
        for page in range(0, len(taken), mmap.PAGESIZE):
            taken[page] = 1


def _refuse_without_a_sentence() -> None:
    error = InputError("x")
    error.args = ("no\x9b sentence",)
    raise error


_FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "escapes": (lambda: {}["x"], "KeyError at"),
    "computes": (lambda: sum(iter(int, 1)), "hangs: it computes"),
    "waits": (lambda: time.sleep(60), "hangs: it waits"),
    "prints": (lambda: print("\x1b[31mred"), "prints '\\x1b'"),
    "dies": (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process died (SIGKILL)"),
    "takes": (_take, "takes "),
    "writes": (lambda: Path("../../../../../../outside.txt").write_text("x"), "writes "),
    "changes": (_change, "changes files"),
    "starts": (lambda: subprocess.run(["true"], check=True), "starts a"),
    "connects": (lambda: socket.socket().connect_ex(("127.0.0.1", 9)), "connects"),
    "reads": (lambda: Path("/dev/zero").open("rb").close(), "reads /dev/zero"),
    "asks": (_ask, "asks a"),
    "refuses": (_refuse_without_a_sentence, "no sentence"),
}
_NAMES = ("nothing", *_FAULTS)


def _drive(bench: Bench) -> None:
    name = (bench.folder / "name").read_text()
    if name != "nothing":
        _FAULTS[name][0]()


class _EachFault(Surface):
    def make(self, seed: int, number: int, seeds: Sequence[Files]) -> tuple[Files, str]:
        return {"name": _NAMES[number].encode()}, "read"


def test_the_suite_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "COMPUTES", 1.0)  # longer than 100 MiB take on a busy machine
    monkeypatch.setattr(runner, "WAITS", 4.0)
    monkeypatch.setattr(guard, "MEMORY", 50 << 20)
    surface = _EachFault(
        "faulty", 1, lambda _: [{"name": b"nothing"}], lambda *_: {}, {"read": (1, _drive)}
    )
    kept = tmp_path / "kept"
    counts, found = runner.run(
        [surface], inputs=len(_NAMES), kept=kept, prepare=lambda folder: folder.mkdir()
    )
    assert counts == {"faulty": len(_NAMES)}
    kinds = {_NAMES[finding.number]: finding.kind for finding in found}
    assert kinds.keys() == _FAULTS.keys()
    for name, (_, expected) in _FAULTS.items():
        assert expected in kinds[name]
    place = next(kept.rglob("input/name"))
    assert place.read_text() == _NAMES[int(place.parents[1].name)]


def test_inputs_follow_from_the_seed() -> None:
    seeds = [{"text.json": b'"a"'}, {"text.json": b'"b"'}]
    surface = next(surface for surface in SURFACES if surface.name == "urls-and-names")
    made = [surface.make(seed, number, seeds) for seed in (1, 1, 2) for number in range(20)]
    assert made[:20] == made[20:40] != made[40:]
