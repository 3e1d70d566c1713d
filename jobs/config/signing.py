"""Whose merges are used, and what this user signs with: what the settings say of signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tintray.errors import SpecError
from tintray.files import read_bytes
from tintray.jobs.config.settings import setting
from tintray.published.files import MergeFiles
from tintray.published.signatures import PublicKey, check_signed, read_private, read_trusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAX_KEYS = 2**18  # bytes: some two thousand public keys
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def trusted_keys() -> tuple[PublicKey, ...]:
    """The public keys of those whose merges are used: of ``trust``, a file or the keys themselves.

    Raises SpecError: the file is not there, or a line is no key.
    """
    found = setting("trust")
    if found is None:
        return ()
    if found.value.lstrip().startswith("ssh-"):
        return read_trusted(found.value, found.origin)
    path = found.folder / Path(found.value).expanduser()
    content = _content(path, f"{found.origin}: expected a file with public keys, or keys")
    return read_trusted(content.decode("utf-8", "replace"), str(path))


def signing_key(file: Path | None) -> Ed25519PrivateKey:
    """The private key in a file, or that of ``signing_key``: a file or, in a variable, the key.

    Raises SpecError, which never quotes a key.
    """
    if file is not None:
        return read_private(_content(file, "--key"), str(file))
    found = setting("signing_key")
    if found is None:
        raise SpecError(
            "no key to sign with: give --key FILE, or set signing_key (TINTRAY_SIGNING_KEY); "
            "`tintray new-key FILE` makes one"
        )
    if "PRIVATE KEY-----" in found.value:
        return read_private(found.value.encode(), found.origin)
    path = found.folder / Path(found.value).expanduser()
    return read_private(_content(path, found.origin, shown="the file that it names"), found.origin)


def _content(path: Path, origin: str, shown: str = "") -> bytes:
    named = shown or str(path)
    try:
        return read_bytes(path, origin, limit=_MAX_KEYS, error=SpecError)
    except FileNotFoundError:
        raise SpecError(f"{origin}: {named} is not there") from None


def signatures_required(asked: bool | None = None) -> bool:
    """Whether merges have to be signed: as was asked for, else as ``require_signed`` says."""
    if asked is not None:
        return asked
    found = setting("require_signed")
    return found is not None and found.read(_truth)


def _truth(value: str, _: Path) -> bool:
    said = value.strip().lower()
    if said not in (*_YES, *_NO):
        raise ValueError(f"expected true or false, found {value!r}")
    return said in _YES


def check_if_required(merge: MergeFiles, asked: bool | None = None) -> None:
    """Refuse a merge that has to be signed and is not; see ``signatures.check_signed``."""
    if signatures_required(asked):
        check_signed(merge.manifest, merge.signatures(), trusted_keys(), merge.url)
