"""Who made a merge: ed25519 signatures of its manifest, by keys that whoever opens it trusts.

What is signed is the manifest as tintray writes it, which names every other file by its hash.
Signatures lie beside it in ``signatures.json``, so that no byte of what was published changes.
Keys are written as OpenSSH writes them; ``ssh-keygen -l`` shows the same fingerprints.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintray.errors import InputError, SignatureError, SpecError, check_installed
from tintray.files import foreign
from tintray.published.manifest import MANIFEST, Manifest
from tintray.seals import seal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURES = "signatures.json"
MAX_SIGNATURES = 2**16
"""Bytes of ``signatures.json`` that are read: some three hundred signatures."""

_KIND = "ssh-ed25519"
_HEAD = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"  # before the 32 bytes of a key, as OpenSSH has it
_NEEDED = ("signing", ("cryptography",), "sign")


@dataclass(frozen=True)
class PublicKey:
    """An ed25519 public key, and what its owner is called by whoever has written it down."""

    raw: bytes
    name: str = ""

    @property
    def line(self) -> str:
        """The key as one line of text: ``ssh-ed25519 AAAA… name``."""
        return f"{_KIND} {base64.b64encode(_HEAD + self.raw).decode()} {self.name}".rstrip()

    @property
    def fingerprint(self) -> str:
        """What people compare: ``SHA256:…``."""
        digest = hashlib.sha256(_HEAD + self.raw).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    @property
    def shown(self) -> str:
        """Its name, or its fingerprint where it has none."""
        return self.name or self.fingerprint

    @classmethod
    def read(cls, line: str) -> PublicKey:
        """The key in a line; raises ValueError for what is none."""
        kind, data, *name = [*line.split(None, 2), "", ""][:3]
        content = base64.b64decode(data, validate=True)
        if kind != _KIND or not content.startswith(_HEAD) or len(content) != len(_HEAD) + 32:
            raise ValueError(f"no {_KIND} key")
        return cls(content[len(_HEAD) :], name[0].strip())


@dataclass(frozen=True)
class Signature:
    """A signature of a manifest, and the key that it is said to be of."""

    key: bytes
    signature: bytes


@dataclass(frozen=True)
class Signer:
    """Who signed a merge, as far as it is known here."""

    name: str | None  # of the trusted key; None: the key is not trusted here
    key: str  # its fingerprint
    holds: bool | None  # whether it is a signature of this very merge; None: cannot be told here


# Keys


def read_trusted(text: str, where: str) -> tuple[PublicKey, ...]:
    """Public keys, one a line with a name after it; raises SpecError naming the line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                found.append(PublicKey.read(line))
            except ValueError as error:
                raise SpecError(
                    f"{where}, line {number}: expected a public key such as 'ssh-ed25519 AAAA… "
                    f"alice', found {line[:40]!r}; `tintray new-key` makes one"
                ) from error
    if not found:
        raise SpecError(f"{where} has no public key; expected lines such as 'ssh-ed25519 AAAA… me'")
    return tuple(found)


def read_private(data: bytes, where: str) -> Ed25519PrivateKey:
    """The private key in a PEM or OpenSSH text; raises SpecError, which does not quote it."""
    check_installed(*_NEEDED)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    ssh = b"OPENSSH PRIVATE KEY" in data[:100]
    read = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    with foreign(
        f"{where} is no private key without a passphrase; expected an ed25519 key as "
        "`tintray new-key` or `ssh-keygen -t ed25519 -N ''` writes it",
        SpecError,
    ):
        key = read(data, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise SpecError(f"{where} is a private key of another kind; expected an ed25519 key")
    return key


def new_key(path: Path, name: str) -> PublicKey:
    """Write a new private key, readable by this user alone, and its public key as ``path``.pub.

    Raises InputError if either is there already: no key is ever overwritten.
    """
    check_installed(*_NEEDED)
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = PublicKey(key.public_key().public_bytes_raw(), name)
    text = key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )  # as openssl writes it
    beside = path.with_name(f"{path.name}.pub")
    for file, mode, content in ((beside, 0o644, f"{public.line}\n".encode()), (path, 0o600, text)):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise InputError(f"{file} is there already; name a new file") from error
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error.strerror}") from error
        with os.fdopen(descriptor, "wb") as written:
            written.write(content)
    return public


# Signatures


def sign(manifest: Manifest, key: Ed25519PrivateKey) -> Signature:
    """The signature of a merge by a private key."""
    return Signature(key.public_key().public_bytes_raw(), key.sign(_signed(manifest)))


def _signed(manifest: Manifest) -> bytes:
    return seal(manifest.to_json(), MANIFEST)


def digest(manifest: Manifest) -> str:
    """The sha256 of what is signed: it tells a merge from any other."""
    return hashlib.sha256(_signed(manifest)).hexdigest()


def write_signatures(signatures: Iterable[Signature]) -> bytes:
    """The content of ``signatures.json``: one signature for each key."""
    latest = {one.key: one for one in signatures}
    listed = [
        {"key": PublicKey(one.key).line, "signature": base64.b64encode(one.signature).decode()}
        for one in latest.values()
    ]
    return (json.dumps({"signatures": listed}, indent=2) + "\n").encode()


def read_signatures(content: bytes, where: str) -> list[Signature]:
    """The signatures in ``signatures.json``; none where there is none.

    Raises SignatureError if it is truncated, too large or altered beyond reading.
    """
    if not content:
        return []
    with foreign(
        f"{where}/{SIGNATURES} is truncated or altered; remove it or fetch it again", SignatureError
    ):
        if len(content) > MAX_SIGNATURES:
            raise ValueError(f"it has more than {MAX_SIGNATURES:,} bytes")
        document: Any = json.loads(content)
        return [
            Signature(
                PublicKey.read(entry["key"]).raw,
                base64.b64decode(entry["signature"], validate=True),
            )
            for entry in document["signatures"]
        ]


def rewritten(content: bytes, where: str) -> bytes:
    """The signatures in ``signatures.json`` and nothing else that it holds; see above."""
    found = read_signatures(content, where)
    return write_signatures(found) if found else b""


def signers(
    manifest: Manifest, content: bytes, trusted: Sequence[PublicKey], where: str
) -> list[Signer]:
    """Who has signed a merge; ``content`` is that of its ``signatures.json``.

    Without cryptography installed it is not told whether signatures hold. Raises SignatureError as
    ``read_signatures``.
    """
    found = read_signatures(content, where)
    names = {key.raw: key.shown for key in reversed(trusted)}
    signed = _signed(manifest) if found else b""
    return [
        Signer(names.get(one.key), PublicKey(one.key).fingerprint, _holds(one, signed))
        for one in found
    ]


def _holds(signature: Signature, signed: bytes) -> bool | None:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError:
        return None
    try:
        Ed25519PublicKey.from_public_bytes(signature.key).verify(signature.signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_signed(
    manifest: Manifest, content: bytes, trusted: Sequence[PublicKey], where: str
) -> list[str]:
    """Names of the trusted keys that have signed a merge: at least one.

    Raises SignatureError: nobody has, nobody who is trusted, or what is said to be a trusted one's
    signature is not of this merge; SpecError: no key is trusted.
    """
    if not trusted:
        raise SpecError(
            f"{where} has to be signed, and no key is trusted here; set `trust` to a file with the "
            "public keys of those whose merges you use"
        )
    check_installed(*_NEEDED)
    found = signers(manifest, content, trusted, where)
    good = [one.name for one in found if one.name and one.holds]
    if good:
        return good
    known = ", ".join(key.shown for key in trusted[:5])
    if not found:
        raise SignatureError(
            f"{where} is not signed, expected a signature of {known}; have one of them run "
            "`tintray sign` on it"
        )
    broken = next((one for one in found if one.name), None)
    if broken is not None:
        raise SignatureError(
            f"{where}: the signature of {broken.name} does not hold for this merge: the manifest "
            "or the signature was changed, or it is another merge's; do not use this merge"
        )
    raise SignatureError(
        f"{where} is signed by {', '.join(one.key for one in found[:3])}, which is not trusted "
        f"here; expected a signature of {known}, or add that key to `trust` if you know whose it is"
    )
