"""A page for each section of the commands, as click knows them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import click

from tintray.jobs.cli import cli

SPECIAL = re.compile(r"([\\*_{}\[\]<>|])")


def escaped(text: str) -> str:
    """A plain text, with what Markdown or a table would act upon made harmless."""
    return SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; its cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pages() -> dict[str, str]:
    """All commands at a glance, and a page for each section."""
    found = {"commands/index.md": _overview()}
    for title, commands in cli.sections():
        parts = "\n".join(_command(one, ["tintray"]) for one in commands)
        found[_path(title)] = f"# {title}\n\n{parts}"
    return found


def _path(title: str) -> str:
    return f"commands/{title.lower().replace(' ', '-')}.md"


def _overview() -> str:
    parts = ["# Commands", "All commands, by what they are about. Each takes `--help`."]
    for title, commands in cli.sections():
        page = _path(title).rpartition("/")[2]
        rows = [
            (f"[`{one.name}`]({page}#tintray-{one.name})", escaped(one.get_short_help_str(200)))
            for one in commands
        ]
        parts += [f"## {title}", table(("command", "what it does"), rows)]
    parts += ["## Exit codes", escaped(cli.epilog or "")]
    return "\n\n".join(parts)


def _command(command: click.Command, above: Sequence[str]) -> str:
    """A command with its usage, options and examples, and those below it."""
    words = [*above, str(command.name)]
    context = click.Context(command, info_name=" ".join(words))
    about, _, example = (command.help or "").partition("\b\nExample:\n")
    usage = " ".join([*words, *command.collect_usage_pieces(context)])
    parts = [f"{'#' * len(words)} {' '.join(words)}", escaped(about), f"```text\n{usage}\n```"]
    if rows := list(_options(command, context)):
        parts.append(table(("option", "what it does"), rows))
    if example:
        lines = "\n".join(line.strip() for line in example.strip().splitlines())
        parts.append(f"```sh\n{lines}\n```")
    if isinstance(command, click.Group):
        parts += [_command(one, words) for one in command.commands.values()]
    return "\n\n".join(parts) + "\n"


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and record[1] and not {"--debug", "--help"} & {*parameter.opts}:
            yield f"`{record[0]}`", escaped(record[1])
