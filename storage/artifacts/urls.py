"""Names of places: store URLs, and keys inside a store; checked without loading a client."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tintray.errors import InputError, SpecError, nearest

RESERVED = ".tmp"  # the first segment under which a folder store writes what is not yet visible

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}")
_LETTERS = re.compile(r"[A-Za-z0-9._-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class FolderUrl:
    """A store in a folder of this machine (or of a file system it mounts)."""

    root: Path


@dataclass(frozen=True)
class S3Url:
    """A store in a bucket, under a prefix that is empty or ends without a slash."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_store_url(url: str | Path) -> FolderUrl | S3Url:
    """Read where a store is: ``./dir``, ``/abs``, ``file:///abs`` or ``s3://bucket/prefix``.

    A relative folder is taken from the working directory. Credentials inside the URL are refused
    and not repeated.
    """
    text = str(url)
    scheme = _SCHEME.match(text)
    if not text.strip() or "\0" in text:
        raise SpecError("store: expected a folder or s3://bucket/prefix, found an empty name")
    if scheme is None:
        try:
            return FolderUrl(Path(text).expanduser().absolute())
        except RuntimeError as error:  # a home folder of nobody
            raise SpecError(f"store: expected a folder, found '{text}' ({error})") from error
    name = scheme.group(1).lower()
    if name == "file":
        return FolderUrl(_file_path(text))
    if name == "s3":
        return _s3_url(text)
    hint = nearest(name, ("file", "s3"))
    raise SpecError(
        f"store: expected a folder, file:// or s3://, found the scheme '{name}://'{hint}"
    )


def _file_path(text: str) -> Path:
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets that are no IPv6 address
        raise SpecError("store: expected file:///path, found a URL that cannot be read") from None
    if parts.netloc not in ("", "localhost"):
        raise SpecError(
            f"store: a file:// URL names a folder of this machine as file:///path, "
            f"found {_named('host', parts.netloc)}; mount it and give its path"
        )
    if not parts.path.startswith("/"):
        raise SpecError("store: a file:// URL needs an absolute path, as in file:///data/tintray")
    return Path(unquote(parts.path))


def _s3_url(text: str) -> S3Url:
    bucket, _, prefix = text[len("s3://") :].partition("/")
    if "@" in bucket or "?" in text:
        raise SpecError(
            "store: an s3:// URL names a bucket and a prefix only; credentials and endpoint belong "
            "in the AWS environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
        )
    if not _BUCKET.fullmatch(bucket):
        found = _named("bucket name", bucket)
        raise SpecError(f"store: expected s3://bucket/prefix, found {found}")
    prefix = prefix.strip("/")
    return S3Url(bucket, prefix and check_key(prefix))


def _named(what: str, text: str) -> str:
    """``text`` quoted, unless it is no name: then it may be a password, and is not repeated."""
    return f"the {what} '{text}'" if _LETTERS.fullmatch(text) else f"a {what} of other characters"


def local_folder(url: str | Path) -> Path | None:
    """The folder that a store or merge URL names, or None when it is not on this machine."""
    place = parse_store_url(url)
    return place.root if isinstance(place, FolderUrl) else None


def check_key(key: str) -> str:
    """Return ``key`` if it is a relative path that stays inside a store; else ``InputError``."""
    if problem := _key_problem(key):
        raise InputError(
            f"artifact key {_shown(key)}: expected a relative path inside the store, such as "
            f"'merges/name/v1/manifest.json'; found {problem}"
        )
    return key


def _key_problem(key: str) -> str | None:
    """Why a key is none, by the limits of S3 (1024 bytes) and of file systems (255 a segment)."""
    segments = key.split("/")
    sizes = [len(segment.encode(errors="replace")) for segment in segments]
    problems = {
        "nothing": not key,
        "an absolute path": key.startswith("/"),
        "a backslash": "\\" in key,
        "a control character": re.search(r"[\0-\x1f\x7f-\x9f]", key),
        "'..', which would leave the store": ".." in segments,
        "an empty segment or '.'": "" in segments or "." in segments,
        f"'{RESERVED}', which is kept for unfinished writes": segments[0] == RESERVED,
        "text that UTF-8 cannot encode": re.search(r"[\ud800-\udfff]", key),
        "a name longer than 255 bytes or a path longer than 1024": max(sizes) > 255
        or sum(sizes) + len(sizes) - 1 > 1024,
    }
    return next((problem for problem, holds in problems.items() if holds), None)


def _shown(key: str) -> str:
    return repr(key if len(key) <= 80 else key[:77] + "...")


def check_name(name: str, field: str = "name") -> str:
    """Return the name of a job or merge if it can be a folder, an object key and a URL part."""
    if not _NAME.fullmatch(name) or name == "latest":
        raise SpecError(
            f"{field}: expected letters, digits, '.', '_' or '-', beginning with a letter or "
            f"digit, at most 100 of them and not 'latest'; found {_shown(name)}"
        )
    return name
