"""The commands on published merges: list, show, eval, compare and export.

MERGE is a name in the catalog (``ten-scripts``, the newest version, or ``ten-scripts/v2``), a
folder or a URL. What MERGE means is decided in ``tintray.jobs.engine.finding``, not here.
"""

from __future__ import annotations

from pathlib import Path

import click

from tintray.jobs.cli.options import (
    answer,
    debug_option,
    factory_option,
    json_option,
    merge_argument,
    place_options,
    quiet_stdout,
    say,
    write,
)


@click.command("list")
@place_options
@json_option
@debug_option
def listing(store: str | None, catalog: str | None, as_json: bool) -> None:
    """List the merges in the catalog, the newest first.

    \b
    Example:
      tintray list --store s3://models/tintray
    """
    from tintray.jobs.cli.tables import print_listing
    from tintray.jobs.config.settings import chosen

    where, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs import api

        merges = api.list_merges(store=where, catalog=database)
    if not merges:
        say(f"no merge in {where} yet; tintray run JOB.yaml makes one", err=True)
    if merges or as_json:
        write(merges, print_listing, as_json=as_json)


@click.command()
@merge_argument
@place_options
@json_option
@debug_option
def show(merge: str, store: str | None, catalog: str | None, as_json: bool) -> None:
    """Show what the merge MERGE kept, its size and its cost.

    MERGE is a name (the newest version), NAME/VERSION, a folder or a URL.

    \b
    Example:
      tintray show ten-scripts/v2
    """
    from tintray.jobs.cli.tables import print_summary
    from tintray.jobs.config.settings import chosen

    where, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs import api

        summary = api.show(merge, store=where, catalog=database)
    write(summary, print_summary, as_json=as_json)


@click.command("eval")
@merge_argument
@place_options
@factory_option
@json_option
@debug_option
def evaluate(merge: str, store: str | None, catalog: str | None, as_json: bool) -> None:
    """Measure the merge MERGE again, on the data of its job.

    MERGE is a name (the newest version), NAME/VERSION, a folder or a URL.

    \b
    Example:
      tintray eval ten-scripts
    """
    from tintray.jobs.cli.tables import print_evaluation
    from tintray.jobs.config.settings import chosen
    from tintray.jobs.display.progress import watch

    where, database = chosen(store, catalog)
    with quiet_stdout(), watch() as on_event:
        from tintray.jobs import api

        table = api.evaluate(merge, store=where, catalog=database, on_event=on_event)
    write(table, print_evaluation, as_json=as_json)


@click.command()
@merge_argument
@click.option(
    "--methods",
    metavar="NAMES",
    help="Merging methods to compare with, separated by commas, or all "
    "[default: average,task_arithmetic].",
)
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw the comparison too, as .png, .svg or .pdf.",
)
@place_options
@factory_option
@json_option
@debug_option
def compare(
    merge: str,
    methods: str | None,
    plot: Path | None,
    store: str | None,
    catalog: str | None,
    as_json: bool,
) -> None:
    """Put MERGE beside its experts and other merging methods.

    MERGE is a name (the newest version), NAME/VERSION, a folder or a URL. All are measured on the
    same data; a method with a scale at the one that agrees best with the experts on the pools.

    \b
    Example:
      tintray compare ten-scripts --methods all --plot methods.svg
    """
    from tintray.jobs.cli.plots import check_plot, plot_comparison
    from tintray.jobs.cli.tables import print_comparison
    from tintray.jobs.config.settings import chosen
    from tintray.jobs.display.progress import watch

    where, database = chosen(store, catalog)
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    if plot is not None:
        check_plot(plot)
    with quiet_stdout(), watch() as on_event:
        from tintray.jobs import api

        table = api.compare(merge, store=where, catalog=database, methods=names, on_event=on_event)
    if plot is not None:
        plot_comparison(table, plot)
    write(table, print_comparison, as_json=as_json)


@click.command()
@merge_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--task", metavar="NAME", help="The task to export; left out, the whole merge.")
@click.option(
    "--adapter",
    is_flag=True,
    help="Write low-rank products on the base in PEFT's format: for merges of LoRA adapters.",
)
@place_options
@factory_option
@json_option
@debug_option
def export(
    merge: str,
    directory: Path,
    task: str | None,
    adapter: bool,
    store: str | None,
    catalog: str | None,
    as_json: bool,
) -> None:
    """Write the model of one task of MERGE, or all of it, to DIR.

    With --task the folder is one that transformers' from_pretrained loads, and it answers exactly
    as the merge does for that task. Without, it holds every task over one backbone, and
    tintray.load opens it. With --adapter a merge of LoRA experts stays an adapter: one for PEFT
    with --task, else one for all tasks plus their tint layers. A model card is in each. MERGE is a
    name (the newest version), NAME/VERSION, a folder or a URL.

    \b
    Example:
      tintray export ten-scripts --task mnist ./mnist-merged
      tintray export ten-scripts ./ten-scripts-merged
      tintray export adapters --adapter ./one-adapter
    """
    from tintray.jobs.config.settings import chosen

    where, database = chosen(store, catalog)
    with quiet_stdout():
        from tintray.jobs import api

        written = api.export(merge, task, directory, store=where, catalog=database, adapter=adapter)
    answer(str(written), {"path": str(written)}, as_json=as_json)
