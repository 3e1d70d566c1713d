"""Sealed JSON documents: a manifest or a cache record that carries the hash of its own content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from storage.urls import scrub
from tintray.errors import IntegrityError, StorageError

_SEAL = "sealed_sha256"


def seal(document: Mapping[str, Any], name: str) -> bytes:
    """JSON text of ``document`` with its own sha256 as last field, passwords in URLs removed.

    Raises :class:`StorageError` naming ``name`` if the document cannot be written as JSON.
    """
    body = {key: value for key, value in document.items() if key != _SEAL}
    try:
        body = json.loads(_text(scrub(body)))
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"{name}: expected a document of texts, finite numbers, lists and mappings: {error}"
        ) from error
    return _text(body | {_SEAL: _digest(body)}).encode()


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """The document in ``data``, without its seal; :class:`IntegrityError` if a byte was changed."""
    try:
        document = json.loads(data)
        found = document.pop(_SEAL)
    except (ValueError, KeyError, AttributeError, TypeError):
        document, found = None, None
    if not isinstance(document, dict) or seal(document, name) != data:
        raise IntegrityError(
            f"{name} is truncated or altered: its content does not have the sha256 that it was "
            f"sealed with ({str(found)[:64] if found else 'none is left'}); restore or remove it"
        )
    return document


def _digest(body: object) -> str:
    return hashlib.sha256(_text(body).encode()).hexdigest()


def _text(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
