"""The files of a published merge: each read as it is needed, its bytes those of the manifest."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from torch import Tensor

from tintray.checkpoints.tensors import read_tensors
from tintray.errors import IntegrityError
from tintray.files import MAX_JSON, foreign, json_object, open_regular, reason, stamp
from tintray.published.manifest import Manifest

BACKBONE = "backbone.safetensors"
COEFFICIENTS = "coefficients.safetensors"


def tint_file(task: str) -> str:
    """Name of the file with a task's private tensors."""
    return f"tints/{task}.safetensors"


def routing_file(task: str) -> str:
    """Name of the file with what tells a task's examples from others."""
    return f"routing/{task}.safetensors"


def reference_file(task: str) -> str:
    """Name of the file with what new examples of a task are compared with."""
    return f"references/{task}.safetensors"


def config_file(task: str, name: str) -> str:
    """Name of one of a task's configuration files."""
    return f"configs/{task}/{name}"


class MergeFiles:
    """The named files under a manifest, which may come from anybody.

    ``fetch`` gives the local path of a file by its name in the manifest, ``url`` is where the merge
    was loaded from, for messages. ``signatures`` reads ``signatures.json``: no bytes if there is
    none (see :mod:`tintray.published.signatures`).
    """

    def __init__(
        self,
        manifest: Manifest,
        fetch: Callable[[str], Path],
        url: str,
        *,
        signatures: Callable[[], bytes] = bytes,
    ) -> None:
        self.manifest, self.fetch, self.url = manifest, fetch, url
        self.signatures = signatures
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

    def json(self, name: str) -> dict[str, Any]:
        """The object in one of the merge's JSON files; see :meth:`file`."""
        return json_object(self.read(name), f"{self.url}/{name}", IntegrityError)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of one of the merge's files; see :meth:`file`."""
        with self._open(name) as (file, path):
            itself = Path(f"/proc/self/fd/{file.fileno()}")  # whatever has its name by now
            with foreign(f"{self.url}/{name} is no safetensors file", IntegrityError):
                return read_tensors(itself if itself.exists() else path)

    def copy(self, name: str, target: Path) -> None:
        """Copy one of the merge's files, verified, to a path below a folder that may not exist."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._open(name) as (file, _), target.open("wb") as copied:
            shutil.copyfileobj(file, copied, 4 << 20)

    @contextmanager
    def _open(self, name: str, limit: int | None = None) -> Iterator[tuple[BufferedReader, Path]]:
        """One of the merge's files, open and at its beginning, its bytes those of the manifest."""
        listed, where = self.manifest.files.get(name), f"{self.url}/{name}"
        if listed is None:
            raise IntegrityError(f"{self.url} has no file {name}; publish the merge again")
        if limit is not None and listed.size > limit:
            raise IntegrityError(f"{where} has more than the {limit:,} bytes that it may have")
        restore = "restore the file or publish the merge again"
        try:
            path = self.fetch(name)
            file = open_regular(path)
        except FileNotFoundError as error:
            raise IntegrityError(
                f"{self.url} lacks the file {name} that its manifest names; {restore}"
            ) from error
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{where} cannot be read ({reason(error)}); {restore}") from error
        with file:
            before = stamp(file.fileno())
            if (size := before[2]) != listed.size:
                raise IntegrityError(
                    f"{where} is damaged: it has {size:,} bytes, the manifest says "
                    f"{listed.size:,}; {restore}"
                )
            if (found := _sha256(file)) != listed.sha256:
                raise IntegrityError(
                    f"{where} is damaged: its sha256 is {found[:12]}…, the manifest says "
                    f"{listed.sha256[:12]}…; {restore}"
                )
            yield file, path
            # A file that was linked or touched has another stamp, and may still be as it was.
            if stamp(file.fileno()) != before and _sha256(file) != found:
                raise IntegrityError(f"{where} was written to while it was read; try again")


def _sha256(file: BufferedReader) -> str:
    """The hash of an open file, which stands at its beginning then."""
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found
