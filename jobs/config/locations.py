"""Where things are: a folder, a hub id or a URL, as the user wrote it and as tintray resolved it.

A relative path means nothing once a worker on another machine reads it, so every location is made
absolute once, when the job file is read. Each function here takes what the user wrote and the
folder that relative paths start from, and raises ``ValueError`` with ``expected ..., found ...``.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tintray.errors import InputError, nearest
from tintray.storage.artifacts.urls import parse_store_url
from tintray.storage.secrets import CATALOG_SCHEMES, learn_url, parse_catalog, shown_url

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
    _refuse_unprintable(written, expected)
    scheme = _scheme(written, ("file", "s3", "hf"), expected)
    if scheme == "s3":
        return _bucket_url(written, expected)
    if scheme == "hf":
        hub_id = written.removeprefix("hf://")
        if not _HUB_ID.fullmatch(hub_id):
            raise ValueError(f"expected hf://org/name, found {shown_url(written)!r}")
        return Location(hub_id, written)
    path = _absolute(written, folder, expected)
    if _exists(path, written, expected):
        return Location(str(path), written)
    if _HUB_ID.fullmatch(written) and not _looks_local(written, folder):
        return Location(written)
    raise ValueError(_missing(path, written, expected))


def data_location(written: str, folder: Path) -> Location:
    """A data file or a folder of images below ``folder``, an s3:// URL, or hf://org/name."""
    expected = "a data file, a folder of images, hf://org/name, or a file:// or s3:// URL"
    _refuse_unprintable(written, expected)
    scheme = _scheme(written, ("file", "s3", "hf"), expected)
    if scheme == "s3":
        return _bucket_url(written, expected)
    if scheme == "hf":
        if not _HUB_DATA.fullmatch(written.removeprefix("hf://")):
            raise ValueError(
                "expected hf://org/name or hf://org/name:configuration, found "
                f"{shown_url(written)!r}"
            )
        return Location(written)
    path = _absolute(written, folder, expected)
    if not _exists(path, written, expected):
        raise ValueError(_missing(path, written, expected))
    return Location(str(path), written)


def store_location(written: str, folder: Path) -> Location:
    """An artifact store: a folder, which need not exist yet, or an s3:// URL."""
    expected = "a folder, or a file:// or s3:// URL"
    _refuse_unprintable(written, expected)
    if _scheme(written, ("file", "s3"), expected) == "s3":
        return _bucket_url(written, expected)
    path = _absolute(written, folder, expected)
    if _exists(path, written, expected) and not path.is_dir():
        raise ValueError(f"expected {expected}, found {shown_url(written)!r}, which is a file")
    return Location(str(path), written)


def catalog_location(written: str, folder: Path) -> Location:
    """A catalog: an SQLAlchemy URL of SQLite or PostgreSQL; SQLite's file may be relative."""
    expected = "a database URL such as sqlite:///catalog.db or postgresql+psycopg://host/name"
    _refuse_unprintable(written, expected)
    shown = shown_url(written)
    scheme = _SCHEME.match(written)
    if scheme is None or scheme[1] not in CATALOG_SCHEMES:
        raise ValueError(f"expected {expected}, found {shown!r}")
    try:
        learn_url(written, parse_catalog(written))
    except ValueError as error:
        raise ValueError(f"expected {expected}, found {error}") from None
    if scheme[1] != "sqlite":
        return Location(written, shown)
    file, mark, query = written.removeprefix("sqlite://").partition("?")
    if not file.startswith("/") or file in ("/", "/:memory:"):
        raise ValueError(f"expected {expected} (a file, with three slashes), found {shown!r}")
    path = _absolute(file[1:], folder, expected)
    if _exists(path, shown, expected) and path.is_dir():
        raise ValueError(f"expected {expected}, found {shown!r}, which is a folder")
    return Location(f"sqlite:///{path}{mark}{query}", shown)


def _scheme(written: str, accepted: tuple[str, ...], expected: str) -> str | None:
    """The URL scheme of ``written``, None for a path; one that is not accepted is refused."""
    match = _SCHEME.match(written)
    if match is None:
        return None
    if match[1] not in accepted:
        raise ValueError(f"expected {expected}, found {shown_url(written)!r}")
    return match[1]


def _bucket_url(written: str, expected: str) -> Location:
    try:
        parse_store_url(written)  # one grammar of s3:// URLs, that of the stores
    except InputError as error:
        problem = str(error).removeprefix("store: ")
        raise ValueError(f"expected {expected}, found {shown_url(written)!r}: {problem}") from error
    return Location(written)


def _absolute(written: str, folder: Path, expected: str) -> Path:
    text = written
    if written.startswith("file://"):
        try:
            parts = urlsplit(written)
        except ValueError:  # brackets that are no IPv6 address
            raise ValueError(f"expected {expected}, found {shown_url(written)!r}") from None
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            shown = shown_url(written)
            raise ValueError(f"expected a file:// URL of an absolute path, found {shown!r}")
        text = unquote(parts.path)
    try:
        return (folder / Path(text).expanduser()).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, or a home folder of nobody
        raise ValueError(f"expected {expected}, found {shown_url(written)!r} ({error})") from error


def _exists(path: Path, written: str, expected: str) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise ValueError(
            f"expected {expected}, found {shown_url(written)!r} ({error.strerror})"
        ) from error


def _looks_local(written: str, folder: Path) -> bool:
    """Whether ``org/name`` is a misspelt path: beside a folder zoo, "zoo/mnsit" and "zo/mnist"."""
    first, _, rest = written.partition("/")
    if (folder / first).is_dir():
        return True
    near = difflib.get_close_matches(first, _siblings(folder / first), n=1)
    return bool(near) and (folder / near[0] / rest).exists()


def _missing(path: Path, written: str, expected: str) -> str:
    """The sentence for a path that is not there, with the nearest name beside what is missing."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    what = "does not exist" if missing == path else f"does not exist ({missing} is missing)"
    hint = nearest(missing.name, _siblings(missing))
    return f"expected {expected}, found {shown_url(written)!r}, which {what}{hint}"


def _siblings(missing: Path) -> list[str]:
    try:
        return [entry.name for entry in missing.parent.iterdir()]
    except OSError:  # not a folder, or not ours to list: then there is nothing to suggest
        return []


def _refuse_unprintable(written: str, expected: str) -> None:
    if not written.strip():
        raise ValueError(f"expected {expected}, found an empty text")
    if not written.isprintable():
        raise ValueError(
            f"expected {expected}, found {shown_url(written)!r}, which has unprintable characters"
        )
