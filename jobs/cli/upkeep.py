"""The commands on stores, catalogs and this installation: artifacts, gc, db, doctor and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tintray.jobs.cli import completing
from tintray.jobs.cli.helping import Group
from tintray.jobs.cli.options import (
    Answer,
    Duration,
    Later,
    address_option,
    command,
    debug_option,
    dry_run_option,
    flag,
    help_text,
    place_options,
    rehearsed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tintray.jobs.records import Record
    from tintray.jobs.upkeep import stores
else:
    stores = Later("upkeep.stores")


def _group(name: str, about: str, example: str, *commands: click.Command) -> click.Group:
    return debug_option(Group(name, commands=commands, help=help_text(about, example)))


# Stores


@command(
    "upkeep_tables.print_artifacts",
    click.option("--kind", metavar="KIND", help="Only those of a kind, such as task-vector."),
    place_options,
    example="artifacts ls --kind task-vector",
)
def ls(**options: Any) -> Sequence[Record]:
    """List the artifacts of a store, and who needs each."""
    return stores.list_artifacts(**options)


@command(
    "upkeep_tables.print_verification",
    click.argument("merge", metavar="[MERGE]", required=False, shell_complete=completing.merges),
    place_options,
    example="artifacts verify ten-scripts/v2",
)
def verify(**options: Any) -> Answer:
    """Read every artifact, or those of MERGE, and compare its hash.

    The exit code is 1 if one is damaged or missing.
    """
    report = stores.verify(**options)
    return Answer(report, code=1 if report.damaged else 0)


@command(
    "upkeep_tables.print_pin",
    click.argument("sha256", metavar="SHA256"),
    flag("--remove", help="Let go of it again."),
    dry_run_option,
    place_options,
    example="artifacts pin 3f9a2c41d07b",
)
def pin(sha256: str, remove: bool, catalog: str, dry_run: bool, **_: Any) -> Any:
    """Keep an artifact from being collected, whoever needs it.

    SHA256 may be cut short, as long as one artifact alone begins so.
    """
    line = stores.pin(sha256, catalog=catalog, pinned=not remove, dry_run=dry_run)
    if dry_run:
        what = "let go of" if remove else "pinned"
        return rehearsed(f"{line.sha256} ({line.kind}) can be {what}", sha256=line.sha256)
    return line


artifacts = _group(
    *("artifacts", "List, verify and pin what lies in a store.", "artifacts verify"),
    *(ls, verify, pin),
)


@command(
    "upkeep_tables.print_garbage",
    flag("--delete", help="Delete it; otherwise it is only listed."),
    click.option(
        *("--older-than", "age"),
        type=Duration(),
        default="24h",
        show_default=True,
        metavar="AGE",
        help="Leave alone what was written or used later: somebody may be about to need it.",
    ),
    place_options,
    example="gc --older-than 7d --delete",
)
def gc(**options: Any) -> Record:
    """List, or delete, what no merge, job or pin needs."""
    return stores.collect_garbage(**options)


# The catalog's database


@command(
    *("upkeep_tables.print_schema", dry_run_option, place_options),
    example="db upgrade --catalog postgresql+psycopg://tintray@db/tintray",
)
def upgrade(catalog: str, dry_run: bool, **_: Any) -> Record:
    """Bring the catalog's tables to this version, or create them.

    It happens wholly or not at all; a database that is newer is refused.
    """
    return stores.upgrade_catalog(catalog, dry_run=dry_run)


@command("upkeep_tables.print_database", place_options, example="db check --json")
def check(catalog: str, **_: Any) -> Answer:
    """Look whether the catalog's database is sound and current.

    The exit code is 1 if it is not.
    """
    report = stores.check_catalog(catalog)
    return Answer(report, code=1 if report.problems else 0)


@command(
    "upkeep_tables.print_forgotten",
    click.option(
        *("--older-than", "age"),
        type=Duration(),
        default="90d",
        show_default=True,
        metavar="AGE",
        help="How long a job has to be over, such as 24h or 90d.",
    ),
    *(dry_run_option, place_options),
    example="db prune --older-than 30d",
)
def prune(catalog: str, age: float, dry_run: bool, **_: Any) -> Record:
    """Forget the rounds of jobs that are long over.

    The last round of each stays, with all else that is known of jobs and merges. Rounds are most of
    what a catalog weighs.
    """
    return stores.forget_rounds(catalog, age=age, dry_run=dry_run)


@command(
    "upkeep_tables.print_relocated",
    click.argument("before", metavar="OLD"),
    *(dry_run_option, place_options),
    example="db relocate s3://models/tintray --store s3://restored/tintray",
)
def relocate(before: str, store: str, catalog: str, dry_run: bool) -> Record:
    """Tell the catalog that the store OLD is --store now.

    For a store that was moved, or restored elsewhere from a backup, with all that lies in it.
    """
    return stores.relocate_store(before, store, catalog, dry_run=dry_run)


_DB = (upgrade, check, prune, relocate)
db = _group("db", "Upgrade, check or tidy the catalog's database.", "db check", *_DB)


# This installation


@command(
    *("upkeep_tables.print_diagnosis", address_option, place_options),
    example="doctor --store s3://models/tintray",
)
def doctor(**options: Any) -> Answer:
    """Check versions, store, database and Ray; each with a fix.

    The Ray cluster is the one that jobs are submitted to; its nodes look at store and catalog too.
    Where there is none, one is started here, and stopped. The exit code is 1 if something is wrong.
    """
    from tintray.jobs.upkeep.doctor import diagnose

    diagnosis = diagnose(**options)
    return Answer(diagnosis, code=0 if diagnosis.healthy else 1)


@command(
    "upkeep_tables.print_configured",
    click.option(
        *("--store", "new_store"),
        metavar="URL",
        help="The artifact store: a folder or s3://bucket/prefix.",
    ),
    click.option("--catalog", "new_catalog", metavar="URL", help="The database of jobs."),
    click.option("--address", metavar="URL", help="A Ray cluster's dashboard, http://head:8265."),
    flag("--force", help="Write the file anew if there is one."),
    dry_run_option,
    example="init --store s3://models/tintray --address http://head:8265",
)
def init(
    new_store: str | None,
    new_catalog: str | None,
    address: str | None,
    force: bool,
    dry_run: bool,
) -> Record:
    """Write the file that names store, catalog and cluster.

    What no option says is asked for; an empty answer leaves it out. On something else than a
    terminal nothing is asked.
    """
    from tintray.jobs.upkeep.setup import configure

    asked = {
        "store": _asked("artifact store (a folder, or s3://bucket/prefix)", new_store),
        "catalog": _asked("catalog (a database URL, or none: beside the store)", new_catalog),
        "address": _asked("Ray cluster (http://head:8265, or none: run here)", address),
    }
    values = {name: value for name, value in asked.items() if value}
    return configure(values, replace=force, dry_run=dry_run)


def _asked(question: str, given: str | None) -> str:
    """An option, or what the person at the terminal answers."""
    import sys

    if given is not None or not sys.stdin.isatty():
        return given or ""
    answer: str = click.prompt(question, default="", show_default=False, err=True)
    return answer.strip()


@command(
    "",
    click.argument("shell", type=click.Choice(("bash", "zsh", "fish"))),
    example="completion bash > ~/.local/share/bash-completion/completions/tintray",
)
def completion(shell: str) -> Answer:
    """Print the script that lets a shell complete commands."""
    from click.shell_completion import get_completion_class

    from tintray.jobs.cli import cli

    found = get_completion_class(shell)
    assert found is not None, "these shells are click's own"
    script = found(cli, {}, "tintray", "_TINTRAY_COMPLETE").source()
    return Answer({"shell": shell, "script": script}, text=script)
