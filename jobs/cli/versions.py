"""Which versions are installed."""

from __future__ import annotations

import click

from tintray.jobs.cli.options import Answer, command

_LIBRARIES = ("torch", "transformers", "ray", "safetensors")


def show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    """The callback of ``--version``."""
    if value and not context.resilient_parsing:
        click.echo(f"tintray {_installed('tintray')}")
        context.exit()


@command("", example="version")
def version() -> Answer:
    """Show the versions of tintray and of what it stands on."""
    import platform

    found = {"tintray": _installed("tintray"), "python": platform.python_version()}
    found |= {library: _installed(library) for library in _LIBRARIES}
    return Answer(found, text="\n".join(f"{name} {what}" for name, what in found.items()))


def _installed(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return "(not installed)"
