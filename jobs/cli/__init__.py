"""The command line: ``tintray COMMAND``.

Each command is a few lines around a Python call. Nothing heavier than click is imported before a
command runs, so that ``tintray --help`` answers at once.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from typing import Any

import click

from tintray.errors import TintrayError, printable, shortened
from tintray.jobs.cli import jobs, merges, models, serving, tasks, upkeep, watching, writing
from tintray.jobs.cli.helping import Group
from tintray.jobs.cli.options import DEBUG, debug_option, help_text, say
from tintray.storage.secrets import redact

INTERRUPTED = 130


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Merge models": (
        *(writing.new, models.run, models.plan, models.validate, writing.fields, models.merge),
        models.methods,
    ),
    "Published merges": (
        *(merges.listing, merges.show, merges.evaluate, merges.compare, watching.report),
        *(watching.explain, watching.conflicts, watching.monitor, merges.check, merges.alias),
        *(merges.export, merges.copy, merges.push, merges.pull, merges.sign, merges.new_key),
        *(merges.history, merges.diff_merges),
        *(merges.rollback, merges.delete, merges.add_router, serving.serve, watching.ui_),
    ),
    "Tasks of a merge": (tasks.add_task, tasks.remove_task, tasks.refresh_task),
    "Jobs on a cluster": (
        *(jobs.submit, jobs.ps, jobs.status, jobs.watch, jobs.logs, jobs.wait, jobs.cancel),
        *(jobs.resume, jobs.retry, jobs.diff, jobs.queue),
    ),
    "Stores and this installation": (
        *(upkeep.artifacts, upkeep.gc, upkeep.db, upkeep.doctor, upkeep.init, upkeep.completion),
        upkeep.version,
    ),
}
"""The commands as the help lists them."""

RENAMED = {
    "add": "add-task",
    "refresh": "refresh-task",
    "remove": "remove-task",
    "rm": "delete",
}
"""Commands of 0.1.0 that have another name now."""


class Commands(Group):
    """The commands in their sections, and one sentence for whatever goes wrong in them."""

    def sections(self) -> Iterable[tuple[str, Iterable[click.Command]]]:
        """The commands as the help lists them."""
        return SECTIONS.items()

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
                say(redact("".join(traceback.format_exception(error))), err=True)
            code, sentence = _explain(error)
        say(redact(sentence), err=True)
        raise click.exceptions.Exit(code)


@click.group(
    cls=Commands,
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
    callback=upkeep.show_version,
    help="Show the version and exit.",
)
@debug_option
def cli() -> None:
    """What all commands share; the help is above."""


for _section in SECTIONS.values():
    for _command in _section:
        cli.add_command(_command)


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
