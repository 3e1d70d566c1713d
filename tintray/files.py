"""Files that somebody else wrote, opened in one place per form.

Nothing but regular files is opened, no more than a bound is read, no link is followed out of the
folder that is read, and whatever a library raises over a file becomes one of our errors.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from tintray.errors import CheckpointError, TintrayError

MAX_JSON = 16 * 2**20
"""Bytes of a JSON file that are read; the index of the largest public models has 13 MB."""


_KEPT = (TintrayError, KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def foreign(
    what: str, error: type[TintrayError] = CheckpointError, *passed: type[Exception]
) -> Iterator[None]:
    """Turn whatever a library raises over a foreign file into ``error``: ``what`` and the reason.

    Exceptions that are ``passed`` stay as they are.

    Libraries in Rust panic with exceptions that are no ``Exception``, and a hostile file can
    exhaust the stack or the memory of any parser, so everything counts but what ends the process.
    """
    kept: tuple[type[BaseException], ...] = (*_KEPT, *passed)
    try:
        yield
    except kept:
        raise
    except BaseException as found:
        raise error(f"{what} ({reason(found)})") from found


def reason(error: BaseException) -> str:
    """The first line of what an exception says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    said = lines[0].strip() if lines else ""
    return f"{type(error).__name__}: {said}" if isinstance(error, KeyError) or not said else said


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes.

    A pipe, a socket or a device is refused, without waiting for what it may send.

    Raises OSError or ValueError: it is not there, may not be read, or is no regular file; or its
    name has a NUL in it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
    except NotADirectoryError as error:  # below a file there is none either
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_bytes(
    path: Path, role: str, *, limit: int = MAX_JSON, error: type[TintrayError] = CheckpointError
) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises FileNotFoundError if there is none: what was expected there is the caller's to say;
    TintrayError: ``error``, if it is no regular file, is larger, or cannot be read.
    """
    unreadable = f"{role}: {path} cannot be read"
    with foreign(unreadable, error, FileNotFoundError), open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise error(
            f"{role}: {path} has more than {limit:,} bytes, which no file of this kind needs; "
            "was another file copied over it?"
        )
    return content


def read_json(
    path: Path, role: str, *, limit: int = MAX_JSON, error: type[TintrayError] = CheckpointError
) -> dict[str, Any]:
    """The object in a JSON file; see ``read_bytes``.

    Raises FileNotFoundError if there is none; TintrayError: ``error``, if it cannot be read, is not
    JSON, or holds something else than an object.
    """
    content = read_bytes(path, role, limit=limit, error=error)
    return json_object(content, f"{role}: {path}", error)


def json_object(content: bytes, where: str, error: type[TintrayError]) -> dict[str, Any]:
    """The object in JSON text; ``error``, which names ``where``, if it is none."""
    with foreign(f"{where} is not valid JSON", error):
        found = json.loads(content.decode("utf-8-sig"))
    if not isinstance(found, dict):
        raise error(f"{where} must hold a JSON object, found {type(found).__name__}")
    return found


def file_in(folder: Path, name: str, role: str) -> Path | None:
    """A file by its name in a folder that somebody else wrote; None if it is not there.

    Raises CheckpointError if it is no regular file, or a link to one outside of the folder. Links
    of the hub's cache, from a snapshot to the blobs beside it, are what they always are.
    """
    path = folder / name
    with foreign(f"{role}: {path} cannot be followed"):
        if not path.is_symlink() and not path.exists():
            return None
        inside, found = folder.resolve(), path.resolve(strict=True)
    blobs = inside.parent.parent / "blobs"
    of_hub = inside.parent.name == "snapshots" and found.parent == blobs
    if not (found.is_relative_to(inside) or of_hub):
        raise CheckpointError(
            f"{role}: {path} is a link to {found}, outside of its folder; expected the file itself"
        )
    if not found.is_file():
        raise CheckpointError(f"{role}: {path} is no regular file; expected one")
    return path


Stamp = tuple[int, int, int, int, int]
"""What tells a file from another, and from itself once it was written to."""


def stamp(file: int | Path) -> Stamp:
    """The stamp of a path or of an open file."""
    told = file.stat() if isinstance(file, Path) else os.fstat(file)
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns
