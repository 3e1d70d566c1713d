"""The commands on stores: artifacts, gc, rm and copy."""

from __future__ import annotations

import re

import click

from tintray.jobs.cli.options import (
    debug_option,
    json_option,
    merge_argument,
    place_options,
    quiet_stdout,
    write,
)

_AGE = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d)?$")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Age(click.ParamType[float]):
    """A length of time such as ``90m``, ``24h`` or ``7d``; seconds without a unit."""

    name = "age"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The age in seconds."""
        if isinstance(value, float | int):
            return float(value)
        found = _AGE.match(value.strip())
        if found is None:
            self.fail(f"expected an age such as 90m, 24h or 7d, found {value!r}", param, ctx)
        return float(found[1]) * _SECONDS[found[2] or "s"]


@click.group()
@debug_option
def artifacts() -> None:
    """List, verify and pin what lies in a store.

    \b
    Example:
      tintray artifacts verify
    """


@artifacts.command("ls")
@click.option("--kind", metavar="KIND", help="Only those of a kind, such as task-vector.")
@place_options
@json_option
@debug_option
def list_artifacts(kind: str | None, store: str | None, catalog: str | None, as_json: bool) -> None:
    """List the artifacts of a store, and who needs each.

    \b
    Example:
      tintray artifacts ls --kind task-vector
    """
    from tintray.jobs.cli.upkeep_tables import print_artifacts
    from tintray.jobs.config.settings import chosen

    where, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.upkeep import stores

        lines = stores.list_artifacts(store=where, catalog=database, kind=kind)
    write(lines, print_artifacts, as_json=as_json)


@artifacts.command()
@click.argument("merge", metavar="[MERGE]", required=False)
@place_options
@json_option
@debug_option
def verify(merge: str | None, store: str | None, catalog: str | None, as_json: bool) -> None:
    """Read every artifact, or those of MERGE, and compare its hash.

    The exit code is 1 if one is damaged or missing.

    \b
    Example:
      tintray artifacts verify ten-scripts/v2
    """
    from tintray.jobs.cli.upkeep_tables import print_verification
    from tintray.jobs.config.settings import chosen

    where, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.upkeep import stores

        report = stores.verify(store=where, catalog=database, merge=merge)
    write(report, print_verification, as_json=as_json)
    if report.damaged:
        raise click.exceptions.Exit(1)


@artifacts.command()
@click.argument("sha256", metavar="SHA256")
@click.option("--remove", is_flag=True, help="Let go of it again.")
@place_options
@json_option
@debug_option
def pin(sha256: str, remove: bool, store: str | None, catalog: str | None, as_json: bool) -> None:
    """Keep an artifact from being collected, whoever needs it.

    SHA256 may be cut short, as long as one artifact alone begins so.

    \b
    Example:
      tintray artifacts pin 3f9a2c41d07b
    """
    from tintray.jobs.cli.upkeep_tables import print_pin
    from tintray.jobs.config.settings import chosen

    _, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.upkeep import stores

        line = stores.pin(sha256, catalog=database, pinned=not remove)
    write(line, print_pin, as_json=as_json)


@click.command()
@click.option("--delete", is_flag=True, help="Delete it; otherwise it is only listed.")
@click.option(
    "--older-than",
    "age",
    type=Age(),
    default="24h",
    show_default=True,
    metavar="AGE",
    help="Leave alone what was written or used later: somebody may be about to need it.",
)
@place_options
@json_option
@debug_option
def gc(delete: bool, age: float, store: str | None, catalog: str | None, as_json: bool) -> None:
    """List, or delete, what no merge, job or pin needs.

    \b
    Example:
      tintray gc --older-than 7d --delete
    """
    from tintray.jobs.cli.upkeep_tables import print_garbage
    from tintray.jobs.config.settings import chosen

    where, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.upkeep import stores

        report = stores.collect_garbage(store=where, catalog=database, age=age, delete=delete)
    write(report, print_garbage, as_json=as_json)


@click.command()
@merge_argument
@place_options
@json_option
@debug_option
def rm(merge: str, store: str | None, catalog: str | None, as_json: bool) -> None:
    """Remove MERGE from its store; gc frees the space.

    MERGE is a name (the newest version), NAME/VERSION, a folder in a store or a URL. Its version is
    never given again.

    \b
    Example:
      tintray rm ten-scripts/v2
    """
    from tintray.jobs.cli.upkeep_tables import print_removed
    from tintray.jobs.config.settings import chosen

    _, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.upkeep import stores

        removed = stores.remove_merge(merge, catalog=database)
    write(removed, print_removed, as_json=as_json)


@click.command()
@merge_argument
@click.argument("destination", metavar="DEST")
@click.option(
    "--dest-catalog",
    metavar="URL",
    help="The catalog to enter the copy in [default: catalog.db in DEST, if that is a folder].",
)
@place_options
@json_option
@debug_option
def copy(
    merge: str,
    destination: str,
    dest_catalog: str | None,
    store: str | None,
    catalog: str | None,
    as_json: bool,
) -> None:
    """Copy MERGE to the store DEST, verified.

    MERGE is a name (the newest version), NAME/VERSION, a folder or a URL; DEST is a folder or an
    s3:// URL. The copy has the same name and version.

    \b
    Example:
      tintray copy ten-scripts/v2 s3://models/tintray
    """
    from tintray.jobs.cli.upkeep_tables import print_copied
    from tintray.jobs.config.settings import chosen, chosen_destination

    _, database = chosen(store, catalog)
    target, known = chosen_destination(destination, dest_catalog)
    with quiet_stdout():
        from tintray.jobs.upkeep import stores

        copied = stores.copy_merge(merge, target, catalog=database, destination_catalog=known)
    write(copied, print_copied, as_json=as_json)
