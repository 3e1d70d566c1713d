"""The artifact store in a folder: atomic, durable writes by fsync, link and rename."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tintray.errors import InputError, NotFoundError
from tintray.storage.artifacts.local import failure, replacing
from tintray.storage.artifacts.protocol import ArtifactStore, Entry, Observer, Source
from tintray.storage.artifacts.urls import RESERVED, check_key

_CHUNK = 4 << 20
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class FolderStore(ArtifactStore):
    """Artifacts as read-only files below one folder.

    A write goes to a scratch file first, is flushed to the disk and then linked under its name, so
    that a reader, or a machine that loses power, finds the whole artifact or none.
    """

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.url = self.root.as_uri()
        self.proved = {}  # stays empty: a file has no mark of its content

    def put(self, key: str, source: Source, *, overwrite: bool = False) -> bool:
        """See ``ArtifactStore.put``."""
        path = self._path(key)
        with self._failures(f"writing {key}"):
            if not overwrite and path.exists():
                return False
            with self._scratch() as scratch:
                _write(scratch, source)
                placed = _place(scratch, path, overwrite)
            if placed:
                _sync(path.parent)
        return placed

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See ``ArtifactStore.get``."""
        with self._reading(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else max(0, stop - start))

    def fetch(self, key: str, destination: Path, *, observe: Observer | None = None) -> Path:
        """See ``ArtifactStore.fetch``."""
        with self._reading(key):
            source = self._path(key).open("rb")
        with source, replacing(destination) as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                if observe is not None:
                    observe(chunk)
        return destination

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See ``ArtifactStore.list``."""
        folder = prefix.rpartition("/")[0]
        top = self._path(folder) if folder else self.root
        with self._failures(f"listing {prefix or 'everything'}"):
            yield from _walk(top, f"{folder}/" if folder else "", prefix)

    def delete(self, key: str) -> None:
        """See ``ArtifactStore.delete``."""
        path = self._path(key)
        with self._failures(f"deleting {key}"), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            with suppress(OSError):  # the first folder that is not empty ends it
                for folder in path.parents[: -len(self.root.parts)]:
                    folder.rmdir()

    def stat(self, key: str) -> Entry | None:
        """See ``ArtifactStore.stat``."""
        path = self._path(key)
        with self._failures(f"reading {key}"):
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Entry(key, found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None

    def local_path(self, key: str) -> Path:
        """The artifact's own file; raises ``NotFoundError`` if there is none."""
        path = self._path(key)
        with self._reading(key):
            if not path.is_file():
                raise FileNotFoundError
        return path

    def touch(self, key: str) -> bool:
        """See ``ArtifactStore.touch``."""
        try:
            os.utime(self._path(key))
        except OSError:  # gone, or the file of another user: then its age stays
            return False
        return True

    def leftovers(self) -> Iterator[Entry]:
        """See ``ArtifactStore.leftovers``."""
        with self._failures("listing unfinished writes"), suppress(FileNotFoundError):
            for item in sorted((self.root / RESERVED).iterdir()):
                with suppress(FileNotFoundError):  # finished while we list
                    files = [path for path in item.rglob("*") if path.is_file()] or [item]
                    found = [path.stat() for path in files]
                    newest = max(item.stat().st_mtime, *(one.st_mtime for one in found))
                    size = sum(one.st_size for one in found)
                    yield Entry(f"{RESERVED}/{item.name}", size, newest)

    def discard(self, leftover: str) -> None:
        """See ``ArtifactStore.discard``."""
        with self._failures(f"deleting {leftover}"), suppress(FileNotFoundError):
            _remove(self.root / RESERVED / Path(leftover).name)

    def check_writable(self) -> None:
        """See ``ArtifactStore.check_writable``."""
        with self._failures("writing a probe"), self._scratch() as scratch:
            _write(scratch, b"tintray")

    def add_folder(self, key: str, files: Mapping[str, Source]) -> bool:
        """Show a folder of files at ``key``, all at once; False if ``key`` is already taken.

        A file that is a path inside this store is hard-linked (copied where links are refused).
        """
        path = self._path(key)
        with self._failures(f"writing {key}"):
            if path.exists():
                return False
            with self._scratch() as scratch:
                scratch.mkdir()
                for name, source in files.items():
                    self._link_or_write(source, scratch / check_key(name))
                for folder, _, _ in os.walk(scratch, topdown=False):
                    _sync(Path(folder))
                _make_folder(path.parent)
                try:
                    scratch.rename(path)  # refused by the system when path is a filled folder
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        return False
                    raise
            _sync(path.parent)
        return True

    def _link_or_write(self, source: Source, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path) and source.is_relative_to(self.root):
            try:
                os.link(source, target)
                return
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
        _write(target, source)

    def _path(self, key: str) -> Path:
        path = self.root / check_key(key)
        # A symbolic link inside the store must not lead a key out of it.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise InputError(
                f"artifact key {key!r}: expected a path inside the store {self.root}, found a "
                "symbolic link that leads out of it; remove the link"
            )
        return path

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = self.root / RESERVED
        _make_folder(folder)
        path = folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            with suppress(OSError):  # gone, or a leftover by now
                _remove(path)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        with self._failures(f"reading {key}"):
            try:
                yield
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFoundError(f"artifact {key} is not in the store {self.root}") from None

    @contextmanager
    def _failures(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise failure("the artifact store", self.root, action, error) from error


def _write(path: Path, source: Source) -> None:
    """Create ``path`` read-only with the bytes of ``source``, on the disk when this returns."""
    # The mode holds for later openers and obeys the umask; this descriptor may still write.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    with open(descriptor, "wb") as target:  # noqa: PTH123 (a descriptor, not a path)
        if isinstance(source, Path):
            with source.open("rb") as file:
                shutil.copyfileobj(file, target, _CHUNK)
        elif isinstance(source, bytes | memoryview):
            target.write(source)
        else:
            target.writelines(source)
        target.flush()
        os.fsync(target.fileno())


def _place(scratch: Path, path: Path, overwrite: bool) -> bool:
    """Give a finished file its name; False if the name was taken and may not be replaced."""
    while True:
        _make_folder(path.parent)
        try:
            if overwrite:
                scratch.replace(path)
            else:
                os.link(scratch, path)  # never replaces what another writer has put there
            return True
        except FileExistsError:
            return False
        except FileNotFoundError:  # the folder was empty, and has just been removed
            if not scratch.exists():
                raise
        except OSError as error:
            if overwrite or error.errno not in _NO_LINKS:
                raise
            overwrite = True  # no hard links here: racing writers of a blob write the same bytes


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: Path, base: str, prefix: str) -> Iterator[Entry]:
    """Files below ``folder`` (whose key is ``base``), in the byte order of their keys."""
    try:
        with os.scandir(folder) as found:
            items = [(item.is_dir(follow_symlinks=False), item) for item in found]
    except (FileNotFoundError, NotADirectoryError):
        return
    # A folder sorts as "name/", which is what the keys below it continue with.
    items.sort(key=lambda pair: os.fsencode(pair[1].name + ("/" if pair[0] else "")))
    for is_folder, item in items:
        key = base + item.name
        if is_folder:
            below = f"{key}/"
            inside = below.startswith(prefix) or prefix.startswith(below)
            if inside and key != RESERVED:
                yield from _walk(folder / item.name, below, prefix)
        elif key.startswith(prefix) and item.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):  # deleted while we list
                status = item.stat(follow_symlinks=False)
                yield Entry(key, status.st_size, status.st_mtime)
