"""The commands that help to write a job file: new and fields."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tintray.jobs.cli import completing
from tintray.jobs.cli.options import Answer, Later, command, dry_run_option, flag, path_option, say

if TYPE_CHECKING:
    from rich.console import Console

    from tintray.jobs.runs import new_data, new_job
else:
    new_data, new_job = Later("runs.new_data"), Later("runs.new_job")

TEMPLATES = ("vision", "text", "lora", "dense")


@command(
    "",
    click.argument("experts", metavar="[FOLDER|HUB_ID]...", nargs=-1),
    click.option("--base", metavar="MODEL", help="What the experts come from [default: found]."),
    click.option(
        "--data",
        metavar="PATTERN",
        help="Where pools are, such as 'data/{task}.csv' [default: beside the experts].",
    ),
    click.option("--test", metavar="PATTERN", help="Where test sets are, if elsewhere."),
    click.option(
        *("--column", "columns"),
        metavar="WHAT=COLUMN",
        multiple=True,
        help="Which column is what, such as text=review or label=stars. May be repeated.",
    ),
    click.option("--name", metavar="NAME", help="The merge's name [default: the folder's]."),
    path_option(
        *("-o", "--output"),
        default="job.yaml",
        show_default=True,
        metavar="FILE",
        help="The file to write.",
    ),
    click.option(
        "--template",
        type=click.Choice(TEMPLATES),
        help="Write an example to fill in instead, without looking at experts.",
    ),
    flag("--yes", help="Ask nothing: what cannot be known is an error."),
    flag("--no-check", help="Do not run an example of each task."),
    flag("--force", help="Replace the file if there is one."),
    dry_run_option,
    example="""new zoo/digits
new models/flowers models/birds --base models/base --data 'data/{task}.npz'
new --template lora -o adapters.yaml""",
)
def new(
    experts: tuple[str, ...],
    template: str | None,
    output: Path,
    yes: bool,
    no_check: bool,
    force: bool,
    dry_run: bool,
    data: str | None,
    test: str | None,
    columns: tuple[str, ...],
    **named: str | None,
) -> Answer:
    """Write a job file for experts of your own.

    Each is a model folder, a folder of model folders, or a hub id. tintray looks at their
    configurations, finds their base and their data, asks for what it cannot know, and checks all of
    it as validate does. Nothing is written if something does not fit.
    """
    from tintray.errors import InputError

    if (template is None) == (not experts):
        raise click.UsageError("expected the experts' folders, or --template")
    if output.is_dir():
        raise InputError(f"{output} is a folder; give -o the name of a file in it")
    if output.exists() and not force and not dry_run:
        raise InputError(f"{output} is there already; give --force to replace it, or -o another")
    if template is not None:
        text, tasks = new_job.template(template), []
    else:
        ask = _refused if yes or not sys.stdin.isatty() else _asked
        wanted = new_data.Wanted(data, test, dict(map(_pair, columns)))
        made = new_job.draft(experts, output, ask, data=wanted, **named)
        if not no_check:
            from tintray.jobs import api

            api.validate(made.spec)
        text, tasks = made.text, [task.name for task in made.spec.tasks]
    if dry_run:
        return Answer({"path": None, "text": text}, text=text.rstrip("\n"))
    new_job.write(output, text)

    def table(_: object, console: Console) -> None:
        from tintray.jobs.cli.tables import print_next, title

        console.print(title(str(output), ", ".join(tasks)))
        print_next(following, console)

    where = shlex.quote(str(output))
    following = {f"tintray run {where}": "merge them", f"tintray plan {where}": "what it takes"}
    if template is not None:
        following = {f"tintray validate {where}": "once it has your names and paths"}
    return Answer({"path": str(output), "tasks": tasks}, table=table)


def _asked(question: str, choices: Sequence[str], option: str) -> str:
    """What the person at the terminal answers."""
    for number, choice in enumerate(choices, 1):
        say(f"  {number}  {choice}", err=True)
    hint = f"{question} (a number, or your own answer)" if choices else question
    answer: str = click.prompt(hint, err=True).strip()
    number = int(answer) if answer.isdecimal() and len(answer) < 4 else 0
    return choices[number - 1] if 0 < number <= len(choices) else answer


def _refused(question: str, choices: Sequence[str], option: str) -> str:
    """Nobody is asked: say which option answers it."""
    from tintray.errors import InputError

    known = f"It may be {', '.join(choices)}" if choices else "Nothing tells"
    raise InputError(f"{question} {known}; give {option}")


def _pair(text: str) -> tuple[str, str]:
    what, equals, column = text.partition("=")
    if not (what and equals and column):
        raise click.BadParameter(f"expected WHAT=COLUMN such as text=review, found {text!r}")
    return what, column


@command(
    "field_tables.print_fields",
    click.argument(
        "path",
        metavar="[SECTION[.FIELD]]",
        required=False,
        default="",
        shell_complete=completing.fields,
    ),
    click.option(
        "--schema",
        type=click.Choice(("job", "tasks", "configuration")),
        help="Print the JSON schema of these files instead, for an editor.",
    ),
    quick=True,
    example="""fields fit
fields tint.budget
fields --schema job > job.schema.json""",
)
def fields(path: str, schema: str | None) -> Answer:
    """Look up the fields of a job file, and the settings.

    All of them, those of a section, or one with all that is known of it: meaning, type, values,
    default, example. The settings are the section `configuration`.
    """
    from tintray.jobs.config import reference

    if schema is None:
        return Answer(reference.find(path))
    if path:
        raise click.UsageError("--schema prints the whole schema; leave out SECTION")
    import json

    text = reference.schema_file(schema).read_text(encoding="utf-8")
    return Answer(json.loads(text), text=text.rstrip("\n"))
