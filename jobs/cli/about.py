"""``tintray version``: what is installed, said without importing any of it."""

from __future__ import annotations

import click

from jobs.cli.options import debug_option

_LIBRARIES = ("torch", "transformers", "ray", "safetensors")


def show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    """The callback of ``--version``."""
    if value and not context.resilient_parsing:
        click.echo(f"tintray {_installed('tintray')}")
        context.exit()


@click.command()
@debug_option
def version() -> None:
    """Show the versions of tintray and of what it stands on.

    \b
    Example:
      tintray version
    """
    import platform

    click.echo(f"tintray {_installed('tintray')}")
    click.echo(f"python {platform.python_version()}")
    for library in _LIBRARIES:
        click.echo(f"{library} {_installed(library)}")


def _installed(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return "(not installed)"
