"""What cannot be used before anything was done is the caller's to mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tintray.errors import (
    AwayError,
    AwayInputError,
    InputError,
    IntegrityError,
    RefusedError,
    RefusedInputError,
    StorageError,
)


@contextmanager
def as_input_error() -> Iterator[None]:
    """A store or a catalog that does not answer, before anything was done, is bad input.

    A job that runs can still tell it from what no waiting mends: see ``recovery.cause_of``.
    """
    try:
        yield
    except IntegrityError:
        raise
    except AwayError as error:
        raise AwayInputError(str(error)) from error
    except RefusedError as error:
        raise RefusedInputError(str(error)) from error
    except StorageError as error:
        raise InputError(str(error)) from error
