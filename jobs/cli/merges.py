"""The commands on published merges: list, show, eval, compare, export, copy, history and others.

MERGE is a name in the catalog (``ten-scripts``, the newest version, or ``ten-scripts/v2``), a
folder or a URL. What MERGE means is decided in ``tintray.jobs.engine.finding``, not here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintray.jobs.cli.options import (
    catalog_option,
    command,
    factory_option,
    folder_argument,
    merge_argument,
    path_option,
    place_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tintray.jobs.results import Record


@command(
    "tables.print_listing",
    place_options,
    name="list",
    nothing="no merge in {store} yet; tintray run JOB.yaml makes one",
)
def listing(**places: Any) -> Sequence[Record]:
    """List the merges in the catalog, the newest first.

    \b
    Example:
      tintray list --store s3://models/tintray
    """
    from tintray.jobs import api

    return api.list_merges(**places)


@command("tables.print_summary", merge_argument, place_options)
def show(merge: str, **places: Any) -> Record:
    """Show what the merge MERGE kept, its size and its cost.

    MERGE is a name (the newest version), NAME/VERSION, a folder or a URL.

    \b
    Example:
      tintray show ten-scripts/v2
    """
    from tintray.jobs import api

    return api.show(merge, **places)


@command(
    "tables.print_evaluation",
    merge_argument,
    place_options,
    factory_option,
    name="eval",
    watched=True,
)
def evaluate(merge: str, **options: Any) -> Record:
    """Measure the merge MERGE again, on the data of its job.

    MERGE is a name (the newest version), NAME/VERSION, a folder or a URL.

    \b
    Example:
      tintray eval ten-scripts
    """
    from tintray.jobs import api

    return api.evaluate(merge, **options)


@command(
    "tables.print_comparison",
    merge_argument,
    click.option(
        "--methods",
        metavar="NAMES",
        help="Merging methods to compare with, separated by commas, or all "
        "[default: average,task_arithmetic].",
    ),
    path_option("--plot", metavar="FILE", help="Draw the comparison too, as .png, .svg or .pdf."),
    place_options,
    factory_option,
    watched=True,
)
def compare(merge: str, methods: str | None, plot: Path | None, **options: Any) -> Record:
    """Put MERGE beside its experts and other merging methods.

    MERGE is a name (the newest version), NAME/VERSION, a folder or a URL. All are measured on the
    same data; a method with a scale at the one that agrees best with the experts on the pools.

    \b
    Example:
      tintray compare ten-scripts --methods all --plot methods.svg
    """
    from tintray.jobs.cli.plots import check_plot, plot_comparison

    names = None if methods is None else [name.strip() for name in methods.split(",")]
    if plot is not None:
        check_plot(plot)
    from tintray.jobs import api

    table = api.compare(merge, methods=names, **options)
    if plot is not None:
        plot_comparison(table, plot)
    return table


@command(
    "",
    merge_argument,
    folder_argument,
    click.option("--task", metavar="NAME", help="The task to export; left out, the whole merge."),
    click.option(
        "--adapter",
        is_flag=True,
        help="Write low-rank products on the base in PEFT's format: for merges of LoRA adapters.",
    ),
    place_options,
    factory_option,
)
def export(merge: str, task: str | None, directory: Path, **options: Any) -> Path:
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
    from tintray.jobs import api

    return api.export(merge, task, directory, **options)


@command(
    "upkeep_tables.print_copied",
    merge_argument,
    click.argument("destination", metavar="DEST"),
    click.option(
        "--dest-catalog",
        metavar="URL",
        help="The catalog to enter the copy in [default: catalog.db in DEST, if that is a folder].",
    ),
    place_options,
)
def copy(merge: str, destination: str, dest_catalog: str | None, catalog: str, **_: Any) -> Record:
    """Copy MERGE to the store DEST, verified.

    MERGE is a name (the newest version), NAME/VERSION, a folder or a URL; DEST is a folder or an
    s3:// URL. The copy has the same name and version.

    \b
    Example:
      tintray copy ten-scripts/v2 s3://models/tintray
    """
    from tintray.jobs.config.settings import chosen_destination
    from tintray.jobs.upkeep import stores

    target, known = chosen_destination(destination, dest_catalog)
    return stores.copy_merge(merge, target, catalog=catalog, destination_catalog=known)


@command("growth_tables.print_history", merge_argument, place_options)
def history(merge: str, catalog: str, **_: Any) -> Sequence[Record]:
    """Draw which version of MERGE grew from which, and how.

    \b
    Example:
      tintray history ten-scripts
    """
    from tintray.jobs.runs.history import history as versions

    return versions(merge, catalog=catalog)


@command(
    "growth_tables.print_merge_difference",
    click.argument("before", metavar="MERGE"),
    click.argument("after", metavar="OTHER"),
    catalog_option,
)
def diff_merges(before: str, after: str, catalog: str | None) -> Record:
    """Show what changed from MERGE to OTHER, by task and layer.

    Each is a name (the newest version), NAME/VERSION, a folder or a URL.

    \b
    Example:
      tintray diff-merges ten-scripts/v1 ten-scripts/v2
    """
    from tintray.jobs.config.settings import chosen
    from tintray.jobs.runs.history import diff_merges as differences

    return differences(before, after, catalog=chosen(None, catalog)[1])


@command(
    "tables.print_summary",
    merge_argument,
    click.option("--to", metavar="VERSION", help="An ancestor, such as v1 [default: the parent]."),
    place_options,
)
def rollback(merge: str, to: str | None, **places: Any) -> Record:
    """Publish an earlier version of MERGE again, as its newest.

    Nothing is undone: versions never change, and the new one says where it came from.

    \b
    Example:
      tintray rollback ten-scripts --to v2
    """
    from tintray.jobs.runs.history import rollback as publish_again

    return publish_again(merge, to, **places)


@command("upkeep_tables.print_removed", merge_argument, place_options)
def delete(merge: str, catalog: str, **_: Any) -> Record:
    """Delete MERGE from its store; gc frees the space.

    MERGE is a name (the newest version), NAME/VERSION, a folder in a store or a URL. Its version is
    never given again.

    \b
    Example:
      tintray delete ten-scripts/v2
    """
    from tintray.jobs.upkeep import stores

    return stores.remove_merge(merge, catalog=catalog)
