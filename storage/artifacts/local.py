"""Local files: written whole or not at all, and failing with a sentence that names them."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tintray.errors import AwayError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path``, at once, when the block ends well.

    It is not flushed to the disk: this is for copies that can be made again.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise failure("the folder", path.parent, f"writing {path}", error) from error
    finally:
        partial.unlink(missing_ok=True)


def failure(what: str, folder: Path, action: str, error: OSError) -> StorageError:
    """What to raise of ``folder`` (shown as ``what``): a disk that is full may have room again."""
    full = error.errno in _FULL
    return (AwayError if full else StorageError)(_sentence(what, folder, action, error))


def _sentence(what: str, folder: Path, action: str, error: OSError) -> str:
    where = f"{what} {folder}"
    if error.errno in _FULL:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        return (
            f"{where} is full: {action} needs more than the {free:,} bytes left on its disk; "
            "free some space or name another place"
        )
    if error.errno == errno.EFBIG:
        return (
            f"{where} takes no file that large: {action} passed the size limit of its file system "
            "or of this process (ulimit -f); raise it or name another place"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = os.strerror(error.errno).lower()
        return (
            f"{where} cannot be used: {action} was refused ({reason}); give this user the right "
            "to read and write there, or name another place"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{where} cannot be used: {action} needs a folder where there is a file"
    return f"{where} failed: {action}: {error}"
