"""Every error that tintray raises on purpose, as one tree; each has the exit code of its base.

The message is the product: one sentence that names the field, file or tensor, what was expected,
what was found, and what to do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

MAX_SENTENCE = 500  # characters; a name or a value from outside may be of any length
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class TintrayError(Exception):
    """Something failed while running; the base of every error raised on purpose.

    Its message often quotes a file or a name that came from outside. Whatever that holds, the
    message is one printable line of at most ``MAX_SENTENCE`` characters.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(printable(str(message))))


class InputError(TintrayError):
    """Bad input: the caller can mend it; raised before compute is spent where it can be known."""

    exit_code = 2


class SpecError(InputError):
    """A field of the job file, or an option of a command, is missing, misspelt or out of range."""


class CheckpointError(InputError):
    """A base or an expert cannot be used: its file, its architecture or one of its tensors."""


class DataError(InputError):
    """A pool or test set cannot be used: its file, its split, its columns or its labels."""


class NotFoundError(InputError):
    """A merge, a task, an artifact or a job of that name does not exist."""


class SignatureError(InputError):
    """A merge is not signed by anybody who is trusted, or a signature does not hold for it."""


class StorageError(TintrayError):
    """The artifact store or the catalog failed: unreachable, read-only, full or refused."""


class AwayError(StorageError):
    """The store or the catalog does not answer, or cannot at the moment: it may come back."""


class RefusedError(StorageError):
    """The store refused a request: for want of rights, or since it was altered on the way."""


class AwayInputError(InputError, AwayError):
    """What was named does not answer: bad input to who asked for it, else it may come back."""


class RefusedInputError(InputError, RefusedError):
    """What was named refuses: bad input to who asked for it, else it may be asked again."""


class IntegrityError(StorageError):
    """An artifact's bytes are not those that its hash promises."""


class StateConflictError(StorageError):
    """The job is not in a state that the change starts from: another client was first."""


class LeaseHeldError(StorageError):
    """Another owner holds the lease of the job."""


class LeaseLostError(StorageError):
    """The lease has gone to another owner, or was released: stop working on the job."""


class ParentChangedError(StorageError):
    """A newer version of a merge has come, or is coming, since a change of it began."""


class FitError(TintrayError):
    """The fit went wrong while running: a loss that is not finite, a worker that died."""


class LostError(FitError):
    """A worker, a node or an object is gone; what it computed can be computed again."""


class PreemptedError(LostError):
    """A node was taken away, as was announced: by a scheduler, say."""


class GrownError(FitError):
    """The cluster has room for more workers: the fit goes on with them from its checkpoint."""


class NoMemoryError(FitError):
    """A worker had no memory left."""


class GuardError(FitError):
    """Nothing was published: an old task would have lost more than the tolerance."""


class ClusterError(TintrayError):
    """A cluster does not answer, or does not do what it was asked."""


class BusyError(TintrayError):
    """As much waits already as may: ask again a little later."""


class CancelledError(TintrayError):
    """The job was stopped on request; what it had reached is kept."""

    exit_code = 3


class TimedOutError(TintrayError):
    """What was waited for did not happen in time."""

    exit_code = 5


def printable(text: str) -> str:
    r"""``text`` on one line, with nothing in it that a terminal would act upon.

    Control characters, escapes, changes of the writing direction, line separators and halves of
    surrogate pairs are shown as Python writes them: ``\x1b``, ``\u202e``, ``\n``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _UNPRINTABLE else c for c in text)


def printable_lines(text: str) -> str:
    """The same of a text of several lines: line breaks and tabs stay as they are."""
    if text.isascii() and text.isprintable():
        return text
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def shortened(text: str, limit: int = MAX_SENTENCE) -> str:
    """``text``, or its beginning and its end around an ellipsis, at most ``limit`` characters."""
    if len(text) <= limit:
        return text
    head = 2 * limit // 3
    return f"{text[:head]}…{text[len(text) - (limit - head - 1) :]}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt ``name``: ``" (did you mean 'x'?)"``, or "" when nothing is near."""
    from difflib import get_close_matches  # only who mistypes waits for it

    close = get_close_matches(name[:200], list(valid), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def check_installed(what: str, packages: Sequence[str], extra: str) -> None:
    """Raise InputError where ``what`` needs packages of an extra that are not installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(
            f"{what} needs {', '.join(missing)}, not installed here; run "
            f"pip install 'tintray[{extra}]'"
        )
