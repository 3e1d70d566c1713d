"""The seal of a JSON document: the hash of its own content, as its last field."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from tintray.errors import IntegrityError, StorageError

_SEAL = "sealed_sha256"
_FIELD = f'\n  "{_SEAL}": "'.encode()
_END = b"\n}\n"  # ends a document, whatever is in it


def seal(
    document: Mapping[str, Any], name: str, clean: Callable[[object], object] = lambda it: it
) -> bytes:
    """JSON text of ``document``, made ``clean``, with its own sha256 as last field.

    Raises ``StorageError`` naming ``name`` if the document cannot be written as JSON.
    """
    body = {key: value for key, value in document.items() if key != _SEAL}
    try:
        text = json.dumps(clean(body), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{name}: expected a document of texts, finite numbers, lists and mappings: {error}"
        ) from error
    return _sealed(text.encode())


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """The document in ``data``, without its seal; ``IntegrityError`` if a byte was changed."""
    # Of a long manifest, hashing the text is cheap and writing it again to compare is not.
    end = data.rfind(_FIELD)
    body = b"{}\n" if end == 1 else data[: end - 1] + _END if end > 1 else b""
    try:
        document = json.loads(data)
        found = document.pop(_SEAL)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        document, found = None, None
    if not isinstance(document, dict) or not body or _sealed(body) != data:
        raise IntegrityError(
            f"{name} is truncated or altered: its content does not have the sha256 that it was "
            f"sealed with ({str(found)[:64] if found else 'none is left'}); restore or remove it"
        )
    return document


def _sealed(text: bytes) -> bytes:
    """A document's text with the sha256 of just that text as one field more."""
    start = b"{" if text == b"{}\n" else text[: -len(_END)] + b","
    return start + _FIELD + hashlib.sha256(text).hexdigest().encode() + b'"' + _END
