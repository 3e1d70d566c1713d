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
_REFUSED = {
    **dict.fromkeys(["subprocess.Popen", "os.system", "os.exec", "os.spawn"], "starts a process"),
    **dict.fromkeys(["os.posix_spawn", "os.fork", "os.forkpty"], "starts a process"),
    **dict.fromkeys(["socket.connect", "socket.sendto", "socket.getaddrinfo"], "connects"),
    "socket.gethostbyname": "connects",
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
        The folder in which files may be written.
    outside
        A folder whose content may neither be changed nor, by confined surfaces, be read.
    said
        A file that standard output and error of this process go to from now on.
    """

    def __init__(self, own: Path, outside: Path, said: Path) -> None:
        self._own = f"{os.path.realpath(own)}{os.sep}"
        self._outside = str(outside)
        self._active = self._confined = False
        self.noticed: list[str] = []
        self._state = self._state_outside()
        self._said = os.open(said, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for stream, target in enumerate((os.open(os.devnull, os.O_RDONLY), self._said, self._said)):
            os.dup2(target, stream)
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
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory begins anew
        before = memory("VmRSS")
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
        size, taken = os.fstat(self._said).st_size, memory("VmHWM") - before
        if size > _LARGEST_ANSWER:
            self.noticed.append(f"says {size:,} bytes")
        found = control_character(self.said())
        if found is not None:
            self.noticed.append(f"prints {found}")
        if taken > MEMORY:
            self.noticed.append(f"takes {taken >> 20:,} MiB")
        before_state, self._state = self._state, self._state_outside()
        if before_state != self._state:
            self.noticed.append("changes files outside its folder")

    def _state_outside(self) -> list[tuple[str, int, int]]:
        stats = [(path.name, path.stat()) for path in sorted(Path(self._outside).iterdir())]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

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
        elif event in _REFUSED:
            if not (_own_processes and _REFUSED[event] == "starts a process"):
                self._notice(f"{_REFUSED[event]} ({event} {str(arguments)[:200]})")
        elif event == "exec":
            source = str(getattr(arguments[0], "co_filename", ""))
            if source.startswith(self._own):
                self._notice(f"runs code of the input ({source})")

    def _opened(self, path: Any, mode: Any, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if flags & _WRITING:
            self._written(path, "open")
        elif self._confined and os.fsdecode(path).startswith(
            ("/dev", "/proc", "/etc", self._outside)
        ):
            where = os.path.realpath(os.fsdecode(path))
            elsewhere = ("/dev/zero", "/dev/stdin", "/proc/self/mem", "/etc/passwd", self._outside)
            if where.startswith(elsewhere):
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
        if unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs") or letter in _MARKS:
            return f"{letter!a} after {text[max(0, at - 60) : at]!a}"
    return None


def memory(field: str) -> int:
    """Bytes of this process's memory: ``VmRSS`` now, ``VmHWM`` at the peak, ``VmData`` its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
