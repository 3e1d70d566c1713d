"""What code does while it reads an input: writes, processes, connections, words, memory."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MEMORY = 2**30
"""Bytes that an input may add to the process."""

_WRITES = {  # event -> which of its arguments are paths, and which is a folder's descriptor
    "os.mkdir": ((0,), 2),
    "os.remove": ((0,), 1),
    "os.rmdir": ((0,), 1),
    "os.rename": ((0, 1), 2),
    "os.link": ((1,), 3),
    "os.symlink": ((1,), 2),
    "os.truncate": ((0,), None),
    "os.chmod": ((0,), 2),
    "os.utime": ((0,), 3),
    "shutil.rmtree": ((0,), None),
}
_PROCESSES = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"),
    "os.spawn",
}
_NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
_OTHER = {
    "builtins.input": "asks a question on the terminal",
    "pickle.find_class": "reads a pickle",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LARGEST_ANSWER = 64 << 10


_own_processes: list[bool] = []


@contextmanager
def own_process() -> Iterator[None]:
    """Let the block start a process, as the product would; nothing else is watched in it less."""
    _own_processes.append(True)
    try:
        yield
    finally:
        _own_processes.pop()


class Guard:
    """Watches this process; made once in it, for an audit hook cannot be taken away.

    Parameters
    ----------
    own
        The folders in which files may be written.
    kept
        A folder whose content may neither be changed nor, by confined surfaces, be read.
    said
        A file that standard output and error of this process go to from now on.
    """

    def __init__(self, own: tuple[Path, ...], kept: Path, said: Path) -> None:
        self._own = tuple(f"{os.path.realpath(folder)}{os.sep}" for folder in own)
        self._kept = str(kept)
        self._elsewhere = ("/dev/zero", "/dev/stdin", "/proc/self/mem", "/etc/passwd", self._kept)
        self._active = self._confined = False
        self.noticed: list[str] = []
        self._state = _state_of(kept)
        self._said = os.open(said, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(self._said, 1)
        os.dup2(self._said, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(  # noqa: SIM115
            2, "w", encoding="utf-8", errors="backslashreplace", closefd=False
        )
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, *, confined: bool) -> Iterator[None]:
        """Note what is done in the block, and what was said and taken once it is over."""
        self.noticed = []
        os.ftruncate(self._said, 0)
        before = _reset_peak()
        self._confined, self._active = confined, True
        try:
            yield
        finally:
            self._active = False
            self._look_back(before)

    def said(self) -> str:
        """What was written to standard output and error."""
        return os.pread(self._said, _LARGEST_ANSWER, 0).decode("utf-8", "backslashreplace")

    def _look_back(self, before: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        size = os.fstat(self._said).st_size
        if size > _LARGEST_ANSWER:
            self.noticed.append(f"says {size:,} bytes")
        if size:
            found = control_character(self.said())
            if found is not None:
                self.noticed.append(f"prints {found}")
        taken = _memory()[1] - before
        if taken > MEMORY:
            self.noticed.append(f"takes {taken >> 20:,} MiB")
        if _state_of(Path(self._kept)) != self._state:
            self.noticed.append("changes files outside its folder")
            self._state = _state_of(Path(self._kept))

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event == "open":
            self._opened(*arguments)
        elif event in _WRITES:
            paths, descriptor = _WRITES[event]
            if descriptor is None or arguments[descriptor] == -1:
                for index in paths:
                    self._written(arguments[index], event)
        elif event in _PROCESSES and not _own_processes:
            self._notice(f"starts a process ({event} {str(arguments)[:200]})")
        elif event in _NETWORK:
            self._notice(f"connects ({event} {str(arguments[-1])[:200]})")
        elif event in _OTHER:
            self._notice(f"{_OTHER[event]} ({str(arguments)[:200]})")
        elif event == "exec":
            source = str(getattr(arguments[0], "co_filename", ""))
            if source.startswith(self._own):
                self._notice(f"runs code of the input ({source})")

    def _opened(self, path: Any, mode: Any, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if flags & _WRITING:
            self._written(path, "open")
        elif self._confined and os.fsdecode(path).startswith(("/dev", "/proc", "/etc", self._kept)):
            where = os.path.realpath(os.fsdecode(path))
            if where.startswith(self._elsewhere):
                self._notice(f"reads {where}")

    def _written(self, path: Any, event: str) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        where = os.path.realpath(os.fsdecode(path))
        if where != os.devnull and not f"{where}{os.sep}".startswith(self._own):
            self._notice(f"writes {where} ({event})")

    def _notice(self, what: str) -> None:
        if len(self.noticed) < 20:
            self.noticed.append(what)


def control_character(text: str) -> str | None:
    """The first character of a text that a terminal would act upon, described; None if none is."""
    for at, letter in enumerate(text):
        if letter in "\n\t" or letter.isalnum():
            continue
        kind = unicodedata.category(letter)
        if kind in ("Cc", "Zl", "Zp", "Cs") or letter in _MARKS:
            return f"{letter!a} after {text[max(0, at - 60) : at]!a}"
    return None


def _state_of(folder: Path) -> list[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        stats = [(entry.name, entry.stat()) for entry in entries]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _reset_peak() -> int:
    """Let the peak of this process's memory begin anew; its memory now, in bytes."""
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
        file.write("5")
    return _memory()[0]


def _memory() -> tuple[int, int]:
    """Bytes that this process has in memory: now, and at the peak."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        lines = file.read().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(found["VmRSS"]) << 10, int(found["VmHWM"]) << 10
