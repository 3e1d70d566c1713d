"""The command line: ``tintray COMMAND``.

Each command is a few lines around a Python call. Nothing heavier than click is imported before a
command runs, so that ``tintray --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from importlib import import_module
from typing import Any

import click

from tintray.errors import TintrayError, printable, shortened
from tintray.jobs.cli.helping import Group
from tintray.jobs.cli.options import DEBUG, debug_option, help_text, say
from tintray.jobs.cli.versions import show_version
from tintray.storage.secrets import redact

INTERRUPTED = 130


SECTIONS: dict[str, dict[str, str]] = {
    "Merge models": {
        "new": "writing.new",
        "run": "models.run",
        "plan": "models.plan",
        "validate": "models.validate",
        "fields": "writing.fields",
        "merge": "models.merge",
        "methods": "models.methods",
    },
    "Published merges": {
        "list": "merges.listing",
        "show": "merges.show",
        "eval": "merges.evaluate",
        "compare": "merges.compare",
        "report": "watching.report",
        "explain": "watching.explain",
        "conflicts": "watching.conflicts",
        "monitor": "watching.monitor",
        "check": "merges.check",
        "alias": "merges.alias",
        "export": "merges.export",
        "copy": "merges.copy",
        "push": "merges.push",
        "pull": "merges.pull",
        "sign": "merges.sign",
        "new-key": "merges.new_key",
        "history": "merges.history",
        "diff-merges": "merges.diff_merges",
        "rollback": "merges.rollback",
        "delete": "merges.delete",
        "add-router": "merges.add_router",
        "serve": "serving.serve",
        "ui": "watching.ui_",
    },
    "Tasks of a merge": {
        "add-task": "tasks.add_task",
        "remove-task": "tasks.remove_task",
        "refresh-task": "tasks.refresh_task",
    },
    "Jobs on a cluster": {
        "submit": "jobs.submit",
        "ps": "jobs.ps",
        "status": "jobs.status",
        "watch": "jobs.watch",
        "logs": "jobs.logs",
        "wait": "jobs.wait",
        "cancel": "jobs.cancel",
        "resume": "jobs.resume",
        "retry": "jobs.retry",
        "diff": "jobs.diff",
        "queue": "jobs.queue",
    },
    "Stores and this installation": {
        "artifacts": "upkeep.artifacts",
        "gc": "upkeep.gc",
        "db": "upkeep.db",
        "doctor": "upkeep.doctor",
        "init": "upkeep.init",
        "completion": "upkeep.completion",
        "version": "versions.version",
    },
}
"""The commands as the help lists them, each with where it is: most calls need one of them."""

RENAMED = {
    "add": "add-task",
    "refresh": "refresh-task",
    "remove": "remove-task",
    "rm": "delete",
}
"""Commands of 0.1.0 that have another name now."""


class ByName(MutableMapping[str, click.Command]):
    """Commands by name, each imported when it is asked for."""

    def __init__(self, places: Iterable[tuple[str, str]]) -> None:
        self._known: dict[str, str | click.Command] = dict(places)

    def __getitem__(self, name: str) -> click.Command:
        known = self._known[name]
        if isinstance(known, str):
            module, _, attribute = known.partition(".")
            found = import_module(f"tintray.jobs.cli.{module}")
            known = self._known[name] = getattr(found, attribute)
        return known

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._known[name] = command

    def __delitem__(self, name: str) -> None:
        del self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


class Commands(Group):
    """The commands in their sections, and one sentence for whatever goes wrong in them."""

    def sections(self) -> Iterable[tuple[str, Iterable[click.Command]]]:
        """The commands as the help lists them."""
        for title, places in SECTIONS.items():
            yield title, [self.commands[name] for name in places]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the words begin with; an old name is refused with the new one."""
        if args[0] in RENAMED:
            ctx.fail(f"'{args[0]}' has another name: write `tintray {RENAMED[args[0]]}`")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error becomes a sentence on standard error and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - a sentence for each
            if DEBUG in ctx.meta:  # causes may quote passwords
                import traceback

                say(redact("".join(traceback.format_exception(error))), err=True)
            code, sentence = _explain(error)
        say(redact(sentence), err=True)
        raise click.exceptions.Exit(code)


@click.group(
    cls=Commands,
    commands=ByName(place for section in SECTIONS.values() for place in section.items()),
    help=help_text(
        "Merge many fine-tuned models into one backbone and a small tint layer for each task.",
        "run examples/digits.yaml",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 something failed while running, 2 bad input, 3 the job was "
    "cancelled, 4 it was lost, 5 not in time, 6 examples differ, 130 interrupted.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show the version and exit.",
)
@debug_option
def cli() -> None:
    """What all commands share; the help is above."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command in ``args`` (``sys.argv``) and return its exit code."""
    try:
        code = cli.main(args, prog_name="tintray", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _usage(error)
    except click.Abort:  # Ctrl-C before the command began
        say("interrupted", err=True)
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the sentence for ``error``."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED, "interrupted"
    if isinstance(error, TintrayError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, OSError) and error.filename is not None:  # the machine's, no fault of ours
        return 1, f"error: {_one_line(f'{error.filename}: {error.strerror}')}"
    said = _one_line(str(error))
    return 1, f"internal error: {type(error).__name__}: {said}; run again with --debug"


def _usage(error: click.ClickException) -> int:
    """Say what is wrong with the command line, and where to read how it goes."""
    click.echo(f"error: {_one_line(error.format_message())}", err=True)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(f"Try '{context.command_path} --help'.", err=True)
    return error.exit_code


def _one_line(said: str) -> str:
    return shortened(printable(" ".join(said.split())))
