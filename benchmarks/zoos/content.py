"""Folders that are built once: recognised by their content, and never seen half built.

A built folder holds a stamp, ``zoo.json``: what it was made from, and the sha256 of every file.
It is up to date when both still hold. A build happens in a hidden folder beside the final one and
is renamed into place, stamp included, so an interrupted build is never mistaken for a finished
one. After a power failure a torn file is found by its hash, which is why nothing is fsynced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tintray.errors import InputError

STAMP = "zoo.json"


def is_current(directory: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether ``directory`` was finished from exactly this, and no file of it has changed since."""
    stamp = _read_stamp(directory)
    if stamp is None or stamp["made_from"] != _plain(made_from):
        return False
    return all(_is_intact(directory / name, sha) for name, sha in stamp["files"].items())


@contextmanager
def replacing(directory: Path, made_from: Mapping[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to build in; when the block ends well, it becomes ``directory``.

    Parameters
    ----------
    directory
        Must be absent, empty, or an earlier build without any file added to it.
    made_from
        What the content depends on, as JSON values; the next build compares it.

    Raises
    ------
    InputError
        ``directory`` holds files of others, or cannot be written.
    """
    try:
        directory = directory.resolve()
        _refuse_foreign(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
            building = Path(scratch) / "new"
            building.mkdir()
            yield building
            _write_stamp(building, made_from)
            if not is_current(directory, made_from):  # else another process was faster
                _refuse_foreign(directory)  # again: a file may have been put there since the start
                if directory.exists():
                    directory.rename(Path(scratch) / "old")
                building.rename(directory)
    except OSError as error:
        raise InputError(
            f"cannot build the zoo in '{directory}': {error.strerror or error}; "
            "name a folder on a writable disk"
        ) from error


def _refuse_foreign(directory: Path) -> None:
    """Only what a build has written may be replaced by a build."""
    for folder in (directory, *directory.parents):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"'{folder}' is a file, expected a folder; name another one")
    present = set(_files(directory)) - {STAMP}
    stamp = _read_stamp(directory)
    if stamp is None and (present or (directory / STAMP).exists()):
        raise InputError(
            f"folder '{directory}' is not empty and holds no zoo of tintray's; "
            "name another folder, or remove this one"
        )
    foreign = sorted(present - set(stamp["files"])) if stamp else []
    if foreign:
        raise InputError(
            f"the zoo in '{directory}' has to be rebuilt, but the folder also holds "
            f"'{foreign[0]}', which is not part of it; move that file away"
        )


def _write_stamp(folder: Path, made_from: Mapping[str, Any]) -> None:
    files = {name: _sha256(folder / name) for name in sorted(_files(folder))}
    stamp = {"made_from": _plain(made_from), "files": files}
    (folder / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def _read_stamp(directory: Path) -> dict[str, Any] | None:
    """The stamp of ``directory``, or None where there is none that makes sense."""
    try:
        stamp = json.loads((directory / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    valid = (
        isinstance(stamp, dict) and "made_from" in stamp and isinstance(stamp.get("files"), dict)
    )
    return stamp if valid else None


def _files(directory: Path) -> Iterator[str]:
    """Every file below ``directory`` as a relative posix path."""
    for path in directory.rglob("*"):
        if not path.is_dir():
            yield path.relative_to(directory).as_posix()


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        return _sha256(path) == sha256
    except OSError:  # missing, a folder, or not readable
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(made_from: Mapping[str, Any]) -> Any:
    """``made_from`` as it comes back from JSON: tuples as lists."""
    return json.loads(json.dumps(made_from))
