"""Where things are: a folder, a hub id or a URL, as the user wrote it and as tintray resolved it.

A relative path means nothing once a worker on another machine reads it, so every location is made
absolute once, when the job file is read. Each function here takes what the user wrote and the
folder that relative paths start from, and raises ``ValueError`` with ``expected ..., found ...``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from pathlib import Path

from tintray.errors import InputError, nearest
from tintray.storage.artifacts.urls import local_folder
from tintray.storage.secrets import CATALOG_SCHEMES, is_plain, learn_url, parse_catalog, shown_url

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_DATA = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


class Location(str):
    """A resolved location: an absolute path, a hub id or a URL. ``written`` is what the user wrote.

    It *is* the resolved string, so that whoever opens it need not know of this class.
    """

    written: str

    def __new__(cls, resolved: str, written: str | None = None) -> Location:
        """``resolved``, remembering that it was ``written`` so (by default, just as it is)."""
        self = super().__new__(cls, resolved)
        self.written = str(resolved) if written is None else written
        return self

    @property
    def path(self) -> Path | None:
        """The local path, or None for a hub id or a URL."""
        return Path(self) if self.startswith("/") else None


def model_location(written: str, folder: Path) -> Location:
    """A base or an expert: something that exists below ``folder``, a hub id, or an s3:// URL.

    ``hf://org/name`` is a hub id whatever folders there are.
    """
    expected = "a folder, a hub id (org/name), or a file:// or s3:// URL"
    scheme = _scheme(written, ("file", "s3", "hf"), expected)
    if scheme == "s3":
        return Location(written)
    if scheme == "hf":
        hub_id = written.removeprefix("hf://")
        if not _HUB_ID.fullmatch(hub_id):
            raise _refusal("hf://org/name", written)
        return Location(hub_id, written)
    path, exists = _path(written, folder, expected)
    if exists:
        return Location(str(path), written)
    if _HUB_ID.fullmatch(written) and not _looks_local(written, folder):
        return Location(written)
    raise _missing(path, written, expected)


def data_location(written: str, folder: Path) -> Location:
    """A data file or a folder of images below ``folder``, an s3:// URL, or hf://org/name."""
    expected = "a data file, a folder of images, hf://org/name, or a file:// or s3:// URL"
    scheme = _scheme(written, ("file", "s3", "hf"), expected)
    if scheme == "hf" and not _HUB_DATA.fullmatch(written.removeprefix("hf://")):
        raise _refusal("hf://org/name or hf://org/name:configuration", written)
    if scheme in ("s3", "hf"):
        return Location(written)
    path, exists = _path(written, folder, expected)
    if not exists:
        raise _missing(path, written, expected)
    return Location(str(path), written)


def store_location(written: str, folder: Path) -> Location:
    """An artifact store: a folder, which need not exist yet, or an s3:// URL."""
    expected = "a folder, or a file:// or s3:// URL"
    if _scheme(written, ("file", "s3"), expected) == "s3":
        return Location(written)
    path, exists = _path(written, folder, expected)
    if exists and not path.is_dir():
        raise _refusal(expected, written, ", which is a file")
    return Location(str(path), written)


def catalog_location(written: str, folder: Path) -> Location:
    """A catalog: an SQLAlchemy URL of SQLite or PostgreSQL; SQLite's file may be relative."""
    expected = "a database URL such as sqlite:///catalog.db or postgresql+psycopg://host/name"
    shown, scheme = shown_url(written), _scheme(written, CATALOG_SCHEMES, expected)
    if scheme is None:
        raise _refusal(expected, written)
    try:
        if not is_plain(written):
            learn_url(written, parse_catalog(written))
    except ValueError as error:
        raise ValueError(f"expected {expected}, found {error}") from None
    if scheme != "sqlite":
        return Location(written, shown)
    file, mark, query = written.removeprefix("sqlite://").partition("?")
    if not file.startswith("/") or file in ("/", "/:memory:"):
        raise _refusal(f"{expected} (a file, with three slashes)", written)
    path, exists = _path(file[1:], folder, expected)
    if exists and path.is_dir():
        raise _refusal(expected, written, ", which is a folder")
    return Location(f"sqlite:///{path}{mark}{query}", shown)


def tracking_location(written: str, folder: Path) -> Location:
    """Where a tracker keeps what it is told: a folder, SQLite's file, or a URL as it is written."""
    if written.startswith("sqlite:"):
        return catalog_location(written, folder)
    expected = "a folder or a URL without user, password and query"
    if "://" not in written or written.startswith("file:"):
        _scheme(written, ("file",), expected)
        return Location(str(_path(written, folder, expected)[0]), written)
    if "@" in written or "?" in written or not written.isprintable():
        raise _refusal(expected, written, "; the tracker has variables of its own for secrets")
    return Location(written)


def _refusal(expected: str, written: str, why: str = "") -> ValueError:
    return ValueError(f"expected {expected}, found {shown_url(written)!r}{why}")


def _scheme(written: str, accepted: Collection[str], expected: str) -> str | None:
    """The URL scheme of ``written``, None for a path.

    Refuses another scheme than is accepted, a bucket's URL that is none, and what no location is.
    """
    if not written.strip():
        raise ValueError(f"expected {expected}, found an empty text")
    if not written.isprintable():
        raise _refusal(expected, written, ", which has unprintable characters")
    match = _SCHEME.match(written)
    if match is None:
        return None
    if match[1] not in accepted:
        raise _refusal(expected, written)
    if match[1] == "s3":
        _local_folder(written, expected)
    return match[1]


def _local_folder(url: str, expected: str) -> Path | None:
    """What a file:// URL means, by the one grammar of URLs, that of the stores; None of s3://."""
    try:
        return local_folder(url)
    except InputError as error:
        raise _refusal(expected, url, f": {str(error).removeprefix('store: ')}") from error


def _path(written: str, folder: Path, expected: str) -> tuple[Path, bool]:
    """The absolute path that a text or a file:// URL means, and whether something is there."""
    of_url = _local_folder(written, expected) if written.startswith("file://") else None
    try:
        path = (folder / (of_url or Path(written)).expanduser()).resolve()
        return path, path.exists()
    except (OSError, RuntimeError) as error:  # a loop of links, nobody's home, too long a name
        reason = getattr(error, "strerror", None) or error
        raise _refusal(expected, written, f" ({reason})") from error


def _looks_local(written: str, folder: Path) -> bool:
    """Whether ``org/name`` is a misspelt path: beside a folder zoo, "zoo/mnsit" and "zo/mnist"."""
    first, _, rest = written.partition("/")
    if (folder / first).is_dir():
        return True
    near = difflib.get_close_matches(first, names_in(folder), n=1)
    return bool(near) and (folder / near[0] / rest).exists()


def _missing(path: Path, written: str, expected: str) -> ValueError:
    """The sentence for a path that is not there, with the nearest name beside what is missing."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    what = "does not exist" if missing == path else f"does not exist ({missing} is missing)"
    hint = nearest(missing.name, names_in(missing.parent))
    return _refusal(expected, written, f", which {what}{hint}")


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, to suggest: nothing where it is no folder, or not ours to list."""
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
