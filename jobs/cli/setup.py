"""The commands that set tintray up for a person: init and completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tintray.jobs.cli.options import answer, debug_option, json_option, write

if TYPE_CHECKING:
    from rich.console import Console

    from tintray.jobs.upkeep.setup import Configured

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.option("--store", metavar="URL", help="The artifact store: a folder or s3://bucket/prefix.")
@click.option("--catalog", metavar="URL", help="The database of jobs and merges.")
@click.option("--address", metavar="URL", help="The dashboard of a Ray cluster, http://head:8265.")
@click.option("--force", is_flag=True, help="Write the file anew if there is one.")
@json_option
@debug_option
def init(
    store: str | None, catalog: str | None, address: str | None, force: bool, as_json: bool
) -> None:
    """Write the file that names store, catalog and cluster.

    What no option says is asked for; an empty answer leaves it out. On something else than a
    terminal nothing is asked.

    \b
    Example:
      tintray init --store s3://models/tintray --address http://head:8265
    """
    from tintray.jobs.upkeep.setup import configure

    asked = {
        "store": _asked("artifact store (a folder, or s3://bucket/prefix)", store),
        "catalog": _asked("catalog (a database URL, or none: beside the store)", catalog),
        "address": _asked("Ray cluster (http://head:8265, or none: run here)", address),
    }
    found: Configured = configure({n: v for n, v in asked.items() if v}, replace=force)
    write(found, print_configured, as_json=as_json)


def _asked(question: str, given: str | None) -> str:
    """An option, or what the person at the terminal answers."""
    import sys

    if given is not None or not sys.stdin.isatty():
        return given or ""
    answer: str = click.prompt(question, default="", show_default=False, err=True)
    return answer.strip()


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@json_option
@debug_option
def completion(shell: str, as_json: bool) -> None:
    """Print the script that lets a shell complete commands.

    \b
    Example:
      tintray completion bash > ~/.local/share/bash-completion/completions/tintray
    """
    from click.shell_completion import get_completion_class

    from tintray.jobs.cli import cli

    found = get_completion_class(shell)
    assert found is not None, "these shells are click's own"
    script = found(cli, {}, "tintray", "_TINTRAY_COMPLETE").source()
    answer(script, {"shell": shell, "script": script}, as_json=as_json)


def print_configured(found: Configured, console: Console) -> None:
    """Where it is, and what is in it."""
    from tintray.jobs.cli.tables import print_facts

    console.print(found.path)
    if found.settings:
        print_facts(found.settings, console)
    console.print("\n`tintray doctor` checks them")
