"""Passwords and tokens: found by parsing the URL that has them, then never shown, stored or sent.

What a URL shows is what its parts are known to be. One that cannot be parsed shows its scheme
alone. Free text, such as a log, is moreover searched for each secret that this process knows.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, urlsplit

if TYPE_CHECKING:
    import sqlalchemy as sa

HIDDEN = "***"
CATALOG_SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg")
ENVIRONMENT = (
    "PGPASSWORD",
    "RAY_AUTH_TOKEN",
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
"""Variables of the environment that hold a secret and nothing else."""

_SHORTEST = 5  # a shorter secret is in every text by chance, and hiding it there spoils the text
_OPEN = frozenset(
    {
        *("host", "port", "hostaddr", "dbname", "user", "sslmode", "sslrootcert", "sslcert"),
        *("sslcrl", "sslnegotiation", "channel_binding", "gssencmode", "target_session_attrs"),
        *("load_balance_hosts", "connect_timeout", "application_name", "client_encoding"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
        *("mode", "uri", "cache", "timeout", "nolock", "immutable", "vfs"),
    }
)
"""Fields of a catalog URL's query that may be shown; any other may hold a secret."""

_HIDDEN = frozenset({"password", "sslpassword", "passfile", "sslkey", "options", "service"})

_NAME = re.compile(r"[^@\s'\"=?:\\]*")  # of a database on a server
_HOST = re.compile(r"[\w.:/%~+-]*")
_CATALOG_URL = re.compile(r"(?:sqlite|postgresql)(?:\+\w+)?://", re.IGNORECASE)
_FILE_URL = re.compile(r"sqlite:///[^?@]+")
_SERVER_URL = re.compile(
    r"postgresql(\+psycopg)?://([a-z0-9_-]+@)?[a-z0-9.-]+(:(?P<port>[0-9]{1,5}))?/[a-z0-9_-]+",
    re.ASCII,
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USERINFO = re.compile(r"(?<=://)([^/\s@:'\"]*):([^\s@]*)@")  # a password may hold a slash
_FIELD = re.compile(
    r"((?:^|[?&;\s])(?:password|passwd|pwd|passphrase|sslpassword|secret|secret_key|"
    r"secret_access_key)=)(?!\*\*\*)('(?:[^'\\]|\\.)*'|\"[^\"]*\"|[^&\s'\";,]+)",
    re.IGNORECASE,
)

_learnt: set[str] = set()  # every secret that this process has used


def parse_catalog(url: str) -> sa.URL:
    """A catalog's URL in its parts; ``ValueError`` if it is unclear where its password ends."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url.encode()  # half of a surrogate pair has no place in a URL
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise ValueError("a URL that cannot be read") from None
    named = _NAME.fullmatch(parsed.database or "") and _HOST.fullmatch(parsed.host or "")
    if parsed.drivername.startswith("sqlite"):
        if parsed.host or parsed.username or parsed.password:
            raise ValueError("a SQLite URL with a host or a user in it")
    elif url.count("@") > 1 or not named:
        raise ValueError(
            "a URL of which it is unclear where the password ends; write '@', '/', ':' and '?' in "
            "it as %40, %2F, %3A and %3F"
        )
    return parsed


def is_plain_file(url: str) -> bool:
    """Whether a catalog's URL is that of a SQLite file and nothing else."""
    return _FILE_URL.fullmatch(url) is not None and url.isprintable()


def is_plain(url: str) -> bool:
    """Whether it is that of a file, or of a user's database on a host: there is no secret in it.

    SQLAlchemy, whose import takes longer than most questions, need not be asked to say so.
    """
    server = _SERVER_URL.fullmatch(url)
    return is_plain_file(url) if server is None else int(server["port"] or 0) < 2**16


def has_secret(url: str) -> bool:
    """Whether a catalog's URL has a password, or anything that may be one."""
    try:
        return _secret_in(parse_catalog(url))
    except ValueError:
        return True


def _secret_in(parsed: sa.URL) -> bool:
    return parsed.password is not None or not all(_open(*pair) for pair in parsed.query.items())


def _open(key: str, value: str | tuple[str, ...]) -> bool:
    """Whether a field of a query may be shown: a known one, and no user with a password in it."""
    return key.lower() in _OPEN and "@" not in "".join(value)


def shown_catalog(parsed: sa.URL) -> str:
    """A catalog's URL as it may be shown and stored."""
    query = {
        key if key.lower() in _OPEN | _HIDDEN else HIDDEN: value if _open(key, value) else HIDDEN
        for key, value in parsed.query.items()
    }
    text = parsed.set(query=query).render_as_string(hide_password=True)
    return text.replace(quote_plus(HIDDEN), HIDDEN)


def shown_url(text: str) -> str:
    """What is, or was meant to be, one URL, without what may be a secret in it; else the text."""
    text = str(text)  # a location is one too, and is not to be given back as one
    scheme = _SCHEME.match(text)
    if scheme is None:
        return redact(text) if "://" in text else text
    if is_plain(text):
        return text
    if _CATALOG_URL.match(text):
        try:
            parsed = parse_catalog(text)
        except ValueError:
            return f"{scheme[0]}{HIDDEN}"
        return shown_catalog(parsed) if _secret_in(parsed) else text
    if "@" not in text and "?" not in text:
        return text
    try:
        parts = urlsplit(text)
        known = "@" not in parts.path + parts.fragment and parts.netloc.count("@") <= 1
    except ValueError:
        known = False
    if not known:
        return f"{scheme[0]}{HIDDEN}"
    userinfo, mark, host = parts.netloc.rpartition("@")
    user, colon, _ = userinfo.partition(":")  # without a colon it may be a token
    shown = f"{user}:{HIDDEN}" if colon else HIDDEN if mark else ""
    query = f"?{HIDDEN}" if parts.query else ""
    return f"{scheme[0]}{shown}{mark}{host}{parts.path}{query}"


def redact(text: str) -> str:
    """Free text without the secrets that this process knows, and without those in URLs in it."""
    for secret in sorted(_known(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _without_fields("\n".join(map(_without_catalogs, text.split("\n"))))


def scrub(document: object) -> object:
    """A copy of a JSON-like document without the secrets of the URLs in it."""
    if isinstance(document, str):
        return shown_url(document) if _CATALOG_URL.match(document) else _without_fields(document)
    if isinstance(document, dict):
        return {key: scrub(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [scrub(value) for value in document]
    return document


def learn_url(url: str, parsed: sa.URL) -> None:
    """Let :func:`redact` hide the secrets of a catalog's URL from now on."""
    _learnt.update(_forms(url, parsed))


def learn(secret: str) -> None:
    """Let :func:`redact` hide a secret from now on."""
    _learnt.update(_spellings(secret))


def _without_fields(text: str) -> str:
    return _FIELD.sub(rf"\1{HIDDEN}", _USERINFO.sub(rf"\1:{HIDDEN}@", text))


def _without_catalogs(line: str) -> str:
    """A line of text without the secrets of catalogs' URLs in it; in doubt without its rest."""
    found = _CATALOG_URL.search(line)
    if found is None:
        return line
    before, scheme, rest = line[: found.start()], found[0], line[found.end() :]
    run = rest.split(None, 1)[0] if rest and not rest[0].isspace() else ""
    run = run.rstrip("'\"`,;:.)]}>")
    tail = rest[len(run) :]
    following = _SCHEME.search(tail)
    try:
        parsed = parse_catalog(scheme + run)
    except ValueError:
        return f"{before}{scheme}{HIDDEN}"
    if "@" in tail[: following.start() if following else None]:  # or a password with a space in it
        return f"{before}{scheme}{HIDDEN}"
    shown = scheme + run
    if any(not _open(*pair) and pair[1] != HIDDEN for pair in parsed.query.items()):
        shown, tail = shown_catalog(parsed), ""  # the value may go on behind the space
    elif parsed.password not in (None, HIDDEN):
        shown = shown_catalog(parsed)
    return f"{before}{shown}{_without_catalogs(tail)}"


def _known() -> set[str]:
    url = os.environ.get("TINTRAY_CATALOG", "")
    if url and not is_plain(url) and not (url.startswith("sqlite:") and "?" not in url):
        _look_into(url)
    values = {form for name in ENVIRONMENT for form in _spellings(os.environ.get(name, ""))}
    return _learnt | values


@lru_cache(maxsize=8)
def _look_into(url: str) -> None:
    try:
        learn_url(url, parse_catalog(url))
    except ValueError:  # then it is never used either
        learn(url)


def _forms(url: str, parsed: sa.URL) -> Iterator[str]:
    """How the secrets of a URL may be written, but for those that its open parts have too."""
    secrets = [str(parsed.password or "")]
    for key, value in parsed.query.items():
        if not _open(key, value):
            secrets += [value] if isinstance(value, str) else value
    # As they are written in the URL, where a part may be percent-encoded and not all.
    userinfo, _, place = url.partition("://")[2].rpartition("@")
    fields = [pair.partition("=") for pair in place.partition("?")[2].split("&")]
    secrets += [value for key, _, value in fields if key.lower() not in _OPEN]
    secrets.append(userinfo.partition(":")[2])
    # A password that is the user's name cannot be told from it in a text.
    beside = f"{parsed.drivername} {parsed.username} {parsed.host} {parsed.database} tintray"
    for secret in set(secrets) - {HIDDEN}:
        if len(secret) >= _SHORTEST and secret not in beside:
            yield from _spellings(secret)


def _spellings(secret: str) -> set[str]:
    quoted = {quote(secret, safe=""), quote(secret), quote_plus(secret), shlex.quote(secret)}
    forms = {secret, *quoted, repr(secret)[1:-1], json.dumps(secret)[1:-1]}
    return {form for form in forms if len(form) >= _SHORTEST} if secret else set()
