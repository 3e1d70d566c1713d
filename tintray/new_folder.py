"""A folder that is written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tintray.errors import InputError, SpecError, StorageError
from tintray.files import reason


def check_new(folder: Path, *, or_empty: bool = False) -> None:
    """Prove that a folder can be made, before anything is computed for it.

    Raises InputError if it exists (``or_empty``: and is not an empty folder), or may not be made.
    """
    try:
        taken = folder.is_symlink() or folder.exists()
        if taken and not (or_empty and folder.is_dir() and not any(folder.iterdir())):
            said = "exists and is not empty" if or_empty else "exists"
            raise InputError(f"{folder} {said}; give a new folder")
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=".tintray-", dir=above):
            pass
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror}; name a folder that this user may make"
        ) from error


@contextmanager
def new_folder(output: Path, *, or_empty: bool = False) -> Iterator[Path]:
    """A folder beside ``output`` that becomes it when the block ends well, and is gone otherwise.

    It is locked while it is written: what a process that was killed has left behind is removed,
    what another one is writing is left alone. Whoever ends second is told that the first one was.

    Raises InputError as ``check_new``; StorageError if it cannot be written to the end.
    """
    check_new(output, or_empty=or_empty)
    partial: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for left in output.parent.glob(f".{output.name}.*.partial"):
            with _locked(left) as mine:
                if mine:
                    shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(".partial", f".{output.name}.", output.parent))
        with _locked(partial):
            os.umask(mask := os.umask(0))
            partial.chmod(0o777 & ~mask)  # mkdtemp makes it for this user alone
            yield partial
            if output.exists() and not (or_empty and not any(output.iterdir())):
                raise SpecError(
                    f"{output} exists by now: another merge into it ended first; name a new folder"
                )
            partial.rename(output)  # over an empty folder too
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{output} cannot be written: {getattr(error, 'strerror', None) or reason(error)}; "
            "nothing of it is kept"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process holds ``folder`` during the block; the system lets go for the dead."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
