"""``tintray merge``: whole checkpoints into one, out of core; ``methods``: what it merges by."""

from __future__ import annotations

from pathlib import Path

import click

from tintray.jobs.cli.options import answer, debug_option, json_option, quiet_stdout, write


@click.command()
@click.argument("experts", metavar="EXPERT...", nargs=-1, required=True)
@click.option("--base", required=True, metavar="MODEL", help="What the experts were tuned from.")
@click.option("--method", required=True, metavar="NAME", help="Such as ties; see tintray methods.")
@click.option(
    "--output",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The folder to write; it must not exist.",
)
@click.option(
    "--parameter",
    "parameters",
    metavar="NAME=VALUE",
    multiple=True,
    help="A parameter of the method, such as density=0.2. May be repeated.",
)
@click.option("--scale", type=float, help="The scale [default: the method's own].")
@click.option("--seed", type=int, default=0, help="The seed of random methods [default: 0].")
@click.option("--memory", default="2GiB", metavar="SIZE", help="What it may hold [default: 2GiB].")
@click.option(
    "--shard", default="5GB", metavar="SIZE", help="The largest output file [default: 5GB]."
)
@json_option
@debug_option
def merge(
    experts: tuple[str, ...],
    base: str,
    method: str,
    output: Path,
    parameters: tuple[str, ...],
    scale: float | None,
    seed: int,
    memory: str,
    shard: str,
    as_json: bool,
) -> None:
    """Merge whole checkpoints into one, out of core.

    They are of one shape, heads included. Tensors are read, merged and written one after another
    within the memory given. For experts with heads of their own, run a job.

    \b
    Example:
      tintray merge --base llama --method ties --parameter density=0.2 \\
        --output merged llama-math llama-code
    """
    from tintray.jobs.display.progress import watch

    with quiet_stdout(), watch() as on_event:
        from tintray.jobs import api

        written = api.merge_checkpoints(
            base,
            experts,
            output,
            method=method,
            parameters=parameters,
            scale=scale,
            seed=seed,
            memory=memory,
            shard=shard,
            on_event=on_event,
        )
    answer(str(written), {"path": str(written)}, as_json=as_json)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@json_option
@debug_option
def methods(names: tuple[str, ...], as_json: bool) -> None:
    """List the merging methods, or say all about NAME.

    Each serves as merge.method or merge.init of a job and in compare --methods; those without data
    in merge --method too.

    \b
    Example:
      tintray methods ties
    """
    from tintray.jobs.cli.method_tables import print_methods
    from tintray.jobs.runs.method_list import list_methods

    with quiet_stdout():
        found = list_methods(names)
    write(found, print_methods, as_json=as_json)
