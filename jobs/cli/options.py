"""What the commands have in common: options, and where results and all other words go."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tintray.errors import StorageError, printable_lines

if TYPE_CHECKING:
    from rich.console import Console

    from tintray.jobs.results import Record

Command = TypeVar("Command", bound=Callable[..., Any])
SomeRecord = TypeVar("SomeRecord", bound="Record | Sequence[Record]")


@dataclass
class Session:
    """What holds for one call of the command line."""

    debug: bool = False


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Session).debug = True


class Seconds(click.FloatRange):
    """A length of time in seconds; click's own range lets pass what is not a number."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The seconds."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"expected a number of seconds, found {value!r}", param, ctx)
        return found


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error.",
)


def _allow_factory(_context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        from tintray.jobs.config.settings import FACTORIES_VARIABLE

        before = os.environ.get(FACTORIES_VARIABLE, "")
        os.environ[FACTORIES_VARIABLE] = f"{before} {value}".strip()


factory_option = click.option(
    "--factory",
    metavar="MODULE:FUNCTION",
    expose_value=False,
    callback=_allow_factory,
    help="Let this function build the modules of a merge that names it.",
)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Write one JSON document to standard output, and nothing else there.",
)

job_argument = click.argument("job", metavar="JOB.yaml", type=click.Path(path_type=Path))

set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY.PATH=VALUE",
    multiple=True,
    help="Override a field of the job file, such as fit.rounds=50 or tasks.mnist.expert=PATH; "
    "relative paths start from the job file. May be repeated.",
)

merge_argument = click.argument("merge", metavar="MERGE")

id_argument = click.argument("job", metavar="JOB")

address_option = click.option(
    "--address",
    metavar="URL",
    help="The dashboard of a Ray cluster, http://head:8265 [default: $TINTRAY_ADDRESS].",
)

_store_option = click.option(
    "--store",
    metavar="URL",
    help="The artifact store [default: $TINTRAY_STORE, else ./tintray-data].",
)
catalog_option = click.option(
    "--catalog",
    metavar="URL",
    help="The catalog's database [default: $TINTRAY_CATALOG, else catalog.db in the store].",
)


def place_options(command: Command) -> Command:
    """Give a command ``--store`` and ``--catalog``."""
    return _store_option(catalog_option(command))


@contextmanager
def at_once() -> Iterator[None]:
    """For a command that is to answer in a moment: no garbage is looked for in the block.

    Most of its time goes into imports, which make none; measured, a tenth of it is saved.
    """
    import gc

    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what is printed in the block, by Python or by a library below it, to standard error.

    Standard output is for the result alone.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # standard output is closed: there is nothing to keep clean
        kept = None
    with redirect_stdout(sys.stderr):
        try:
            if kept is not None:
                os.dup2(2, 1)
            yield
        finally:
            if kept is not None:
                os.dup2(kept, 1)
                os.close(kept)


def write(
    result: SomeRecord, render: Callable[[SomeRecord, Console], None], *, as_json: bool
) -> None:
    """Write the result of a command to standard output, as a table or as JSON."""
    from tintray.jobs.cli.tables import write_json
    from tintray.jobs.display.terminal import escaped, open_console

    with until_closed():
        if as_json:
            write_json(result, sys.stdout)
        else:
            try:
                render(escaped(result), open_console(sys.stdout))
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                # A record is filled from catalogs and manifests that anybody may have written.
                raise StorageError(
                    f"what was found cannot be shown ({error}): a row of the catalog or a manifest "
                    "was written by another program or is damaged; --json shows it as it is"
                ) from error


def answer(text: str, document: Mapping[str, object], *, as_json: bool) -> None:
    """Write what a command answers with that has no table: a text, or one JSON object."""
    import json

    with until_closed():
        say(json.dumps(document).replace("\x7f", "\\u007f") if as_json else text)


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Write a text to standard output or error: what a terminal would act upon is escaped."""
    click.echo(printable_lines(text), err=err, nl=nl)


@contextmanager
def until_closed() -> Iterator[None]:
    """Write to standard output; exit quietly when its reader has enough, as ``head`` soon has.

    Raises
    ------
    StorageError
        If it cannot be written, as a file on a full disk.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:  # what is left of it would fail again at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise click.exceptions.Exit(1) from None
        raise StorageError(f"standard output cannot be written: {error.strerror}") from error
