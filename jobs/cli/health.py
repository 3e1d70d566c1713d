"""The commands that look whether all is well: db and doctor."""

from __future__ import annotations

import click

from tintray.jobs.cli.options import (
    address_option,
    debug_option,
    json_option,
    place_options,
    quiet_stdout,
    write,
)


@click.group()
@debug_option
def db() -> None:
    """Upgrade or check the catalog's database.

    \b
    Example:
      tintray db check
    """


@db.command()
@place_options
@json_option
@debug_option
def upgrade(store: str | None, catalog: str | None, as_json: bool) -> None:
    """Bring the catalog's tables to this version, or create them.

    It happens wholly or not at all; a database that is newer is refused.

    \b
    Example:
      tintray db upgrade --catalog postgresql+psycopg://tintray@db/tintray
    """
    from tintray.jobs.cli.upkeep_tables import print_schema
    from tintray.jobs.config.settings import chosen

    _, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.upkeep import stores

        change = stores.upgrade_catalog(database)
    write(change, print_schema, as_json=as_json)


@db.command()
@place_options
@json_option
@debug_option
def check(store: str | None, catalog: str | None, as_json: bool) -> None:
    """Look whether the catalog's database is sound and current.

    The exit code is 1 if it is not.

    \b
    Example:
      tintray db check --json
    """
    from tintray.jobs.cli.upkeep_tables import print_database
    from tintray.jobs.config.settings import chosen

    _, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.upkeep import stores

        report = stores.check_catalog(database)
    write(report, print_database, as_json=as_json)
    if report.problems:
        raise click.exceptions.Exit(1)


@click.command()
@address_option
@place_options
@json_option
@debug_option
def doctor(address: str | None, store: str | None, catalog: str | None, as_json: bool) -> None:
    """Check versions, store, database and Ray; each with a fix.

    The Ray cluster is the one that jobs are submitted to; where there is none, one is started here,
    and stopped. The exit code is 1 if something is wrong.

    \b
    Example:
      tintray doctor --store s3://models/tintray
    """
    from tintray.jobs.cli.upkeep_tables import print_diagnosis
    from tintray.jobs.config.settings import chosen

    where, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs.upkeep.doctor import diagnose

        diagnosis = diagnose(store=where, catalog=database, address=address)
    write(diagnosis, print_diagnosis, as_json=as_json)
    if not diagnosis.healthy:
        raise click.exceptions.Exit(1)
