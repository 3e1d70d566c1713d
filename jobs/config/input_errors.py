"""What cannot be used before anything was done is the caller's to mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tintray.errors import InputError, IntegrityError, StorageError


@contextmanager
def as_input_error() -> Iterator[None]:
    """A store or a catalog that does not answer, before anything was done, is bad input."""
    try:
        yield
    except IntegrityError:
        raise
    except StorageError as error:
        raise InputError(str(error)) from error
