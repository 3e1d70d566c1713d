"""What the commands have in common: options, and where results and all other words go."""

from __future__ import annotations

import functools
import gc
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tintray.errors import StorageError, printable_lines
from tintray.jobs.cli import completing
from tintray.jobs.cli.helping import EXAMPLE, Command

if TYPE_CHECKING:
    from rich.console import Console

    from tintray.jobs.records import Record

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Decorated], Decorated]
SomeRecord = TypeVar("SomeRecord", bound="Record | Sequence[Record]")

DEBUG = "tintray.debug"
"""Whether tracebacks are shown: in the ``meta`` of a call's contexts."""
RECIPE = "tintray.recipe"
"""The recipe that was asked for, there too."""
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Later:
    """A module below ``tintray.jobs`` that is imported when something of it is asked for.

    The help needs none of them. A type checker sees the module itself.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(f"tintray.jobs.{self._name}"), name)


class Duration(click.ParamType[float]):
    """A length of time such as ``90m``, ``24h`` or ``7d``, in seconds, its unit where none is."""

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


class Version(click.ParamType[int]):
    """A version such as ``v3``."""

    name = "version"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Its number."""
        number = str(value).removeprefix("v")
        if not (number.isdecimal() and len(number) < 10 and int(number)):
            self.fail(f"expected a version such as v3, found {value!r}", param, ctx)
        return int(number)


path_option = functools.partial(click.option, type=click.Path(path_type=Path))
path_argument = functools.partial(click.argument, type=click.Path(path_type=Path))
flag = functools.partial(click.option, is_flag=True)
_heard = functools.partial(click.option, expose_value=False)


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[DEBUG] = True


def _allow_factory(_context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        from tintray.jobs.config.settings import FACTORIES_VARIABLE

        before = os.environ.get(FACTORIES_VARIABLE, "")
        os.environ[FACTORIES_VARIABLE] = f"{before} {value}".strip()


def _require_signed(_context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from tintray.jobs.config.settings import SIGNED_VARIABLE

        os.environ[SIGNED_VARIABLE] = "true"


def _set_recipe(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        context.meta[RECIPE] = value


debug_option = _heard(
    "--debug", is_flag=True, is_eager=True, callback=_set_debug, help="Show an error's traceback."
)
factory_option = _heard(
    "--factory",
    metavar="MODULE:FUNCTION",
    callback=_allow_factory,
    help="Let this function build the modules of a merge that names it.",
)
signed_option = _heard(
    "--require-signed",
    is_flag=True,
    callback=_require_signed,
    help="Refuse a merge that nobody in $TINTRAY_TRUST has signed.",
)
json_option = flag(
    *("--json", "as_json"), help="Write one JSON document to standard output, and nothing else."
)
dry_run_option = flag("--dry-run", help="Say what would be written, and write nothing.")
_override_option = click.option(
    *("--set", "overrides"),
    metavar="KEY.PATH=VALUE",
    multiple=True,
    shell_complete=completing.overrides,
    help="Override a field of the job file, such as fit.rounds=50 or tasks.mnist.expert=PATH; "
    "relative paths start from the job file. May be repeated.",
)
_recipe_option = _heard(
    "--recipe",
    type=click.Choice(("fast", "default", "best")),
    callback=_set_recipe,
    help="How long to learn, where the job file does not say [default: the job file's].",
)


address_option = click.option(
    "--address",
    metavar="URL",
    help="The dashboard of a Ray cluster, http://head:8265 [default: as configured].",
)


def _place_option(name: str, what: str, default: str, *param: str) -> Decorator[Any]:
    return click.option(f"--{name}", *param, metavar="URL", help=f"{what} [default: {default}].")


_PLACES = {
    "store": ("The artifact store", "as configured, else ./tintray-data"),
    "catalog": ("The catalog's database", "as configured, else catalog.db in the store"),
}
_IN_JOB_FILE = "the job file's, else as configured"


def place_options(command: Decorated) -> Decorated:
    """Give a command ``--store`` and ``--catalog``: it takes both, resolved."""
    for name, about in reversed(_PLACES.items()):
        command = _place_option(name, *about)(command)
    return command


def catalog_options(command: Decorated) -> Decorated:
    """The same for a command that takes the catalog alone: that of the store, if none is named."""
    command = _place_option("catalog", *_PLACES["catalog"])(command)
    found: Decorated = _place_option("store", *_PLACES["store"], "job_store")(command)
    return found


def set_option(command: Decorated) -> Decorated:
    """What is laid over a job file: fields, a recipe, and where it keeps what it makes."""
    for name, (what, _) in reversed(_PLACES.items()):
        command = _place_option(name, what, _IN_JOB_FILE, f"job_{name}")(command)
    return _override_option(_recipe_option(command))


folder_argument = path_argument("directory", metavar="DIR")
job_argument = path_argument("job", metavar="JOB.yaml")
merge_argument = click.argument("merge", metavar="MERGE", shell_complete=completing.merges)
id_argument = click.argument("job", metavar="JOB", shell_complete=completing.jobs)
_MEANINGS = {
    merge_argument: "MERGE is a name (the newest version), NAME/v2, NAME@ALIAS, a folder or a URL.",
    id_argument: "JOB is the id of a job, how one begins, a name, or latest.",
}


def help_text(about: str | None, example: str, *options: Callable[[Any], Any]) -> str:
    """What a command does, what its arguments may be, and examples, one a line."""
    meanings = (_MEANINGS[option] for option in options if option in _MEANINGS)
    lines = "\n".join(f"  tintray {line}" for line in example.split("\n"))
    return "\n\n".join([inspect.cleandoc(about or ""), *meanings, f"{EXAMPLE}{lines}"])


@dataclass(frozen=True)
class Answer:
    """What a command answers with, where it has an exit code, a table or a text of its own."""

    result: Any
    code: int = 0
    table: str | Callable[[Any, Console], None] | None = None
    text: str | None = None


def rehearsed(text: str, **facts: Any) -> Answer:
    """What ``--dry-run`` answers: what would be done, and that nothing was."""
    return Answer(facts, text=f"{text}; nothing was (--dry-run)")


def command(
    table: str,
    *options: Callable[[Any], Any],
    example: str,
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
        It is to answer in a moment, most of which goes into imports, which make no garbage: without
        looking for any it takes a tenth less.
    nothing
        What is said on standard error of an empty answer; may name ``{store}``.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        def run(as_json: bool, **given: Any) -> None:
            if quick:
                gc.disable()
            try:
                answer(as_json, given)
            finally:
                gc.enable()

        def answer(as_json: bool, given: dict[str, Any]) -> None:
            found = _call(function, _resolved(given), watched)
            if isinstance(found, Path):
                found = Answer({"path": str(found)}, text=str(found))
            shown = found if isinstance(found, Answer) else Answer(found)
            if nothing and not shown.result:
                say(nothing.format(**given), err=True)
            if shown.result or not nothing or as_json:
                write(shown.result, shown.table or table, as_json=as_json, text=shown.text)
            if shown.code:
                raise click.exceptions.Exit(shown.code)

        made: Any = run
        for option in reversed((*options, json_option, debug_option)):
            made = option(made)
        about = help_text(function.__doc__, example, *options)
        named = name or function.__name__.replace("_", "-")
        return click.command(named, cls=Command, help=about)(made)

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
    if "overrides" in given and "job" in given:
        given["overrides"] = (*given["overrides"], *_laid_over(given))
        if isinstance(given["job"], Path):
            from tintray.jobs.config.job_file import load_spec

            given["job"] = load_spec(given["job"], given.pop("overrides"))
    elif "catalog" in given:
        from tintray.jobs.config.settings import chosen

        store, catalog = chosen(given.pop("job_store", given.get("store")), given["catalog"])
        given["catalog"] = catalog
        if "store" in given:
            given["store"] = store
    return given


def _laid_over(given: dict[str, Any]) -> Iterator[str]:
    """Overrides of a job file by options of their own; theirs start from the current folder."""
    if recipe := click.get_current_context().meta.get(RECIPE):
        yield f"recipe={recipe}"
    for name in _PLACES:
        if (written := given.pop(f"job_{name}")) is not None:
            from tintray.jobs.config.settings import located

            yield f"{name}={json.dumps(located(name, written))}"


def catalog_of(store: str | None, catalog: str | None) -> str:
    """The catalog that ``catalog_options`` name."""
    from tintray.jobs.config.settings import chosen

    return chosen(store, catalog)[1]


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
    result: SomeRecord,
    table: str | Callable[[SomeRecord, Console], None],
    *,
    as_json: bool,
    text: str | None = None,
) -> None:
    """Write the result of a command to standard output: as JSON, as its text, or as a table.

    ``table`` prints it, or names what does: ``tables.print_summary``.
    """
    with until_closed():
        if text is not None and not as_json:
            say(text)
            return
        from tintray.jobs.cli.tables import write_json
        from tintray.jobs.display.terminal import escaped, open_console

        if as_json:
            write_json(result, sys.stdout)
            return
        render: Any = table
        if isinstance(table, str):
            module, _, name = table.partition(".")
            render = getattr(import_module(f"tintray.jobs.cli.{module}"), name)
        try:
            render(escaped(result), open_console(sys.stdout))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            # A record is filled from catalogs and manifests that anybody may have written.
            raise StorageError(
                f"what was found cannot be shown ({error}): a row of the catalog or a manifest "
                "was written by another program or is damaged; --json shows it as it is"
            ) from error


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Write a text to standard output or error: what a terminal would act upon is escaped."""
    click.echo(printable_lines(text), err=err, nl=nl)


@contextmanager
def until_closed() -> Iterator[None]:
    """Write to standard output; exit quietly when its reader has enough, as ``head`` soon has.

    What cannot be written, as to a full disk, is a ``StorageError``.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:  # what is left of it would fail again at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise click.exceptions.Exit(1) from None
        raise StorageError(f"standard output cannot be written: {error.strerror}") from error
