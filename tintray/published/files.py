"""The files of a published merge: each read as it is needed, its bytes those of the manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from torch import Tensor

from tintray.checkpoints.tensors import read_tensors
from tintray.errors import IntegrityError, StorageError
from tintray.files import MAX_JSON, check_new, foreign, open_regular, reason
from tintray.published.manifest import Manifest

_CHUNK = 4 << 20

BACKBONE = "backbone.safetensors"
COEFFICIENTS = "coefficients.safetensors"


def tint_file(task: str) -> str:
    """Name of the file with a task's private tensors."""
    return f"tints/{task}.safetensors"


def config_file(task: str, name: str) -> str:
    """Name of one of a task's configuration files."""
    return f"configs/{task}/{name}"


class MergeFiles:
    """The named files under a manifest, which may come from anybody.

    Parameters
    ----------
    manifest
        What the merge's ``manifest.json`` says.
    fetch
        Gives the local path of a file, by its name in the manifest.
    url
        Where the merge was loaded from, for messages.
    """

    def __init__(self, manifest: Manifest, fetch: Callable[[str], Path], url: str) -> None:
        self.manifest = manifest
        self.url = url
        self.fetch = fetch
        self._verified: dict[str, Path] = {}

    def file(self, name: str) -> Path:
        """Local path of one of the merge's files, its sha256 checked on first use.

        Who reads it later may find another file there: :meth:`read` and :meth:`tensors` do not.

        Raises IntegrityError if the bytes are not those that the manifest names.
        """
        if name not in self._verified:
            with self._open(name) as (_, path):
                self._verified[name] = path
        return self._verified[name]

    def read(self, name: str) -> bytes:
        """The content of one of the merge's small files; see :meth:`file`."""
        with self._open(name, limit=MAX_JSON) as (file, _):
            return file.read()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of one of the merge's files; see :meth:`file`."""
        with self._open(name) as (file, path):
            itself = Path(f"/proc/self/fd/{file.fileno()}")  # whatever has its name by now
            with foreign(f"{self.url}/{name} is no safetensors file", IntegrityError):
                return read_tensors(itself if itself.exists() else path)

    @contextmanager
    def _open(self, name: str, limit: int | None = None) -> Iterator[tuple[BinaryIO, Path]]:
        """One of the merge's files, open and at its beginning, its bytes those of the manifest."""
        listed, where = self.manifest.files.get(name), f"{self.url}/{name}"
        if listed is None:
            raise IntegrityError(f"{self.url} has no file {name}; publish the merge again")
        if limit is not None and listed.size > limit:
            raise IntegrityError(f"{where} has more than the {limit:,} bytes that it may have")
        try:
            path = self.fetch(name)
            file = open_regular(path)
        except FileNotFoundError as error:
            raise IntegrityError(
                f"{self.url} lacks the file {name} that its manifest names; restore the "
                "file or publish the merge again"
            ) from error
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"{where} cannot be read ({reason(error)}); restore the file or publish the merge "
                "again"
            ) from error
        with file:
            before = _state(file)
            if before[0] != listed.size:
                raise IntegrityError(
                    f"{where} is damaged: it has {before[0]:,} bytes, the manifest says "
                    f"{listed.size:,}; restore the file or publish the merge again"
                )
            found = _sha256(file)
            if found != listed.sha256:
                raise IntegrityError(
                    f"{where} is damaged: its sha256 is {found[:12]}…, the manifest says "
                    f"{listed.sha256[:12]}…; restore the file or publish the merge again"
                )
            file.seek(0)
            yield file, path
            if _state(file) == before:  # else linked, touched, or written to
                return
            file.seek(0)
            if _sha256(file) != found:
                raise IntegrityError(f"{where} was written to while it was read; try again")

    def json(self, name: str) -> dict[str, Any]:
        """The object in one of the merge's JSON files; see :meth:`file`."""
        content = self.read(name)
        with foreign(f"{self.url}/{name} is not valid JSON", IntegrityError):
            found = json.loads(content.decode("utf-8-sig"))
        if not isinstance(found, dict):
            raise IntegrityError(f"{self.url}/{name} must hold a JSON object")
        return found

    def copy(self, name: str, target: Path) -> None:
        """Copy one of the merge's files, verified, to a path below a folder that may not exist."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._open(name) as (file, _), target.open("wb") as copied:
            shutil.copyfileobj(file, copied, _CHUNK)


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A hidden folder to write in; when the block ends well, it becomes ``directory``.

    Raises InputError if ``directory`` exists and is not empty, or cannot be made there;
    StorageError if it cannot be written to the end.
    """
    check_new(directory, or_empty=True)
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{directory} cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _state(file: BinaryIO) -> tuple[int, int, int]:
    """What changes when somebody writes to an open file (and when it is linked or touched)."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
