"""What every artifact store offers: named byte strings, visible whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class Pieces(Protocol):
    """Bytes that are never in memory whole: ``size`` of them, the same in each iteration."""

    size: int

    def __iter__(self) -> Iterator[memoryview]:
        """Piece after piece; each holds until the next is asked for."""


Source = bytes | memoryview | Path | Pieces
Observer = Callable[[bytes], object]
"""What looks at bytes as they pass, such as the ``update`` of a hash."""


@dataclass(frozen=True)
class Entry:
    """One artifact as a listing shows it: ``size`` in bytes, ``modified`` in seconds since 1970.

    ``mark`` is what a server calls this content (an ETag), and changes with it; empty if unknown.
    """

    key: str
    size: int
    modified: float = field(default=0.0, compare=False)
    mark: str = field(default="", compare=False)


class ArtifactStore(Protocol):
    """Named byte strings that become visible whole or not at all.

    Keys are relative POSIX paths (``check_key``). Every method raises ``StorageError`` when the
    store itself fails, and ``InputError`` for a key that would leave it.
    """

    url: str
    """The canonical URL of the store, never with credentials."""
    proved: dict[str, str]
    """Blobs whose bytes this object has hashed whole: their sha256, and the mark they had then."""

    def put(self, key: str, source: Source, *, overwrite: bool = False) -> bool:
        """Write an artifact, at once and durably; True if it was written.

        Without ``overwrite`` an existing artifact is left as it is and False is returned.
        """

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start:stop`` of an artifact, as slicing would give them for 0 <= start.

        Raises ``NotFoundError`` if there is none.
        """

    def fetch(self, key: str, destination: Path, *, observe: Observer | None = None) -> Path:
        """Copy an artifact to a local file (replaced at once), with bounded memory.

        ``observe`` sees the bytes in order as they arrive: a hash is ready when the copy is.
        """

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Artifacts whose key begins with ``prefix``, in the byte order of their keys."""

    def delete(self, key: str) -> None:
        """Remove an artifact; one that is not there is no error."""

    def stat(self, key: str) -> Entry | None:
        """An artifact as a listing would show it, or None if there is none."""

    def exists(self, key: str) -> bool:
        """Whether there is an artifact of that key."""
        return self.stat(key) is not None

    def local_path(self, key: str) -> Path | None:
        """The artifact's own file, to be mapped and never written; None if it has none here."""

    def touch(self, key: str) -> bool:
        """Let an artifact's age begin anew; False if it is not there or cannot be touched."""

    def leftovers(self) -> Iterator[Entry]:
        """What writes that were broken off, or are going on, have put aside; never artifacts."""

    def discard(self, leftover: str) -> None:
        """Remove a leftover by its key; one that is not there is no error."""

    def check_writable(self) -> None:
        """Prove with one small artifact that the store can be written, before compute is spent."""
