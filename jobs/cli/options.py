"""What the commands have in common: options, and where results and all other words go."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
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


_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """A length of time such as ``90m``, ``24h`` or ``7d``; seconds without a unit."""

    name = "duration"

    def __init__(self, least: float = 0.0, most: float = sys.float_info.max) -> None:
        self._least, self._most = least, most

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The seconds."""
        text = str(value).strip()
        unit = text[-1:] if text[-1:] in _SECONDS else ""
        try:
            seconds = float(text.removesuffix(unit)) * _SECONDS[unit or "s"]
        except ValueError:
            seconds = math.nan
        if not self._least <= seconds <= self._most:
            bounds = f" from {self._least:g} to {self._most:g} seconds" if self._least else ""
            expected = f"a length of time such as 30, 90m or 7d{bounds}"
            self.fail(f"expected {expected}, found {value!r}", param, ctx)
        return seconds


def path_option(name: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that is a path."""
    return click.option(name, type=click.Path(path_type=Path), **settings)


folder_argument = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))

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


@dataclass(frozen=True)
class Answer:
    """What a command answers with, where it has an exit code or a table of its own."""

    result: Any
    code: int = 0
    table: str | Callable[[Any, Console], None] | None = None


def command(
    table: str,
    *options: Callable[[Any], Any],
    name: str | None = None,
    watched: bool = False,
    quick: bool = False,
    nothing: str = "",
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command from a function: its answer is a record, a list of records, a path or an Answer.

    Parameters
    ----------
    table
        What prints the answer, such as ``tables.print_summary``; imported when there is one.
    options
        Options and arguments, in the order of the help. The two of ``place_options`` are given to
        the function as resolved locations; a job file and its overrides as one ``JobSpec``.
    watched
        Show the progress of what the function does; it takes ``on_event``.
    quick
        It is to answer in a moment; see ``at_once``.
    nothing
        What is said on standard error of an empty answer; may name ``{store}``.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(as_json: bool, **given: Any) -> None:
            with at_once() if quick else nullcontext():
                found = _call(function, _resolved(given), watched)
            shown = found if isinstance(found, Answer) else Answer(found)
            if nothing and not shown.result:
                say(nothing.format(**given), err=True)
            if isinstance(shown.result, Path):
                answer(str(shown.result), {"path": str(shown.result)}, as_json=as_json)
            elif shown.result or not nothing or as_json:
                write(shown.result, shown.table or table, as_json=as_json)
            if shown.code:
                raise click.exceptions.Exit(shown.code)

        made: Any = run
        for option in reversed((*options, json_option, debug_option)):
            made = option(made)
        return click.command(name or function.__name__.replace("_", "-"))(made)

    return decorate


def _call(function: Callable[..., Any], given: dict[str, Any], watched: bool) -> Any:
    with quiet_stdout():
        if not watched:
            return function(**given)
        from tintray.jobs.display.progress import watch

        with watch() as on_event:
            return function(on_event=on_event, **given)


def _resolved(given: dict[str, Any]) -> dict[str, Any]:
    """What a command was given, with locations and the job file read: before anything heavy is."""
    if "store" in given:
        from tintray.jobs.config.settings import chosen

        given["store"], given["catalog"] = chosen(given["store"], given["catalog"])
    if isinstance(given.get("job"), Path):
        from tintray.jobs.config.job_file import load_spec

        given["job"] = load_spec(given["job"], given.pop("overrides"))
    return given


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
    result: SomeRecord, table: str | Callable[[SomeRecord, Console], None], *, as_json: bool
) -> None:
    """Write the result of a command to standard output, as a table or as JSON.

    ``table`` prints it, or names what does: ``tables.print_summary``.
    """
    from tintray.jobs.cli.tables import write_json
    from tintray.jobs.display.terminal import escaped, open_console

    if isinstance(table, str):
        module, _, name = table.partition(".")
        render = getattr(import_module(f"tintray.jobs.cli.{module}"), name)
    else:
        render = table
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
