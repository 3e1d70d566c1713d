"""The commands on published merges: list, show, eval, compare, export, copy, history and others.

MERGE is a name in the catalog (``ten-scripts``, the newest version, or ``ten-scripts/v2``), a
folder or a URL. What MERGE means is decided in ``tintray.jobs.engine.finding``, not here.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintray.jobs.cli import completing
from tintray.jobs.cli.options import (
    Answer,
    Later,
    Version,
    catalog_options,
    command,
    dry_run_option,
    factory_option,
    flag,
    folder_argument,
    merge_argument,
    path_option,
    place_options,
    rehearsed,
    signed_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tintray.jobs import api
    from tintray.jobs.config import settings
    from tintray.jobs.records import Record
    from tintray.jobs.runs import add_router as adding
    from tintray.jobs.runs import evaluate_data as evaluating
    from tintray.jobs.runs import history as versions
    from tintray.jobs.runs import merge_difference, merge_list
    from tintray.jobs.runs import rollback as rolling_back
    from tintray.jobs.upkeep import aliases, sharing, signing, stores
else:
    api, settings = Later("api"), Later("config.settings")
    versions, stores = Later("runs.history"), Later("upkeep.stores")
    evaluating = Later("runs.evaluate_data")
    adding, merge_list = Later("runs.add_router"), Later("runs.merge_list")
    merge_difference, rolling_back = Later("runs.merge_difference"), Later("runs.rollback")
    aliases, sharing = Later("upkeep.aliases"), Later("upkeep.sharing")
    signing = Later("upkeep.signing")

_of_merge = (merge_argument, place_options)


@command(
    "list_tables.print_listing",
    place_options,
    name="list",
    quick=True,
    nothing="no merge in {store} yet; tintray run JOB.yaml makes one",
    example="list --store s3://models/tintray",
)
def listing(**places: Any) -> Sequence[Record]:
    """List the merges in the catalog, the newest first."""
    return merge_list.list_merges(**places)


@command("tables.print_summary", *_of_merge, example="show ten-scripts/v2")
def show(merge: str, **places: Any) -> Record:
    """Show what the merge MERGE kept, its size and its cost."""
    return api.show(merge, **places)


@command(
    "tables.print_evaluation",
    *(*_of_merge, factory_option),
    flag("--route", help="Measure too how well examples find their task where none is named."),
    click.option(
        "--foreign",
        metavar="FILE[#SPLIT]",
        multiple=True,
        help="Examples of none of the tasks: are they noticed? Implies --route. May be repeated.",
    ),
    click.option(
        "--data", metavar="FILE[#SPLIT]", help="Measure on these examples of --task instead."
    ),
    flag("--labels", help="Read the labels of --data: accuracy, and not only agreement."),
    click.option("--task", metavar="NAME", shell_complete=completing.tasks, help="One task alone."),
    click.option(
        "--corrupt",
        metavar="NAME[:1-5],...",
        help="Measure on corrupted examples too, each at the severity named or at all five: "
        "gaussian_noise, shot_noise, impulse_noise, blur, contrast, brightness, jpeg, pixelate; "
        "typos of texts.",
    ),
    name="eval",
    watched=True,
    example="""eval ten-scripts
eval ten-scripts --route --foreign 'signs.npz#test'
eval ten-scripts --task mnist --data new.npz --labels
eval ten-scripts --corrupt gaussian_noise:3,blur:2,contrast""",
)
def evaluate(
    merge: str,
    route: bool,
    foreign: tuple[str, ...],
    data: str | None,
    labels: bool,
    task: str | None,
    corrupt: str | None,
    **options: Any,
) -> Record | Answer:
    """Measure the merge MERGE again: on the data of its job, on other data, or under corruptions.

    Its experts are measured beside it.
    """
    if not (data or labels or task or corrupt):
        return api.evaluate(merge, route=route, foreign=foreign, **options)
    if route or foreign:
        raise click.UsageError(
            "--route and --foreign are of the job's data and of all tasks: "
            "leave out --data, --labels, --task and --corrupt"
        )
    asked: Any = {"data": data, "labels": labels, "task": task, "corrupt": corrupt}
    found = evaluating.evaluate_data(merge, **asked, **options)
    return Answer(found, table="tables.print_measured")


@command(
    "tables.print_comparison",
    merge_argument,
    click.option(
        "--methods",
        metavar="NAMES",
        shell_complete=completing.methods,
        help="Merging methods to compare with, separated by commas, or all "
        "[default: average,task_arithmetic].",
    ),
    path_option("--plot", metavar="FILE", help="Draw the comparison too, as .png, .svg or .pdf."),
    dry_run_option,
    place_options,
    factory_option,
    watched=True,
    example="compare ten-scripts --methods all --plot methods.svg",
)
def compare(
    merge: str, methods: str | None, plot: Path | None, dry_run: bool, **options: Any
) -> Any:
    """Put MERGE beside its experts and other merging methods.

    All are measured on the same data; a method with a scale at the one that agrees best with the
    experts on the pools.
    """
    from tintray.jobs.cli.plots import check_plot, plot_comparison

    names = None if methods is None else [name.strip() for name in methods.split(",")]
    if plot is not None:
        check_plot(plot)
    if dry_run:
        found, others = api.check_compare(merge, methods=names, **options)
        text = f"{found} can be compared with {', '.join(others)}"
        return rehearsed(text, merge=found, methods=others)
    table = api.compare(merge, methods=names, **options)
    if plot is not None:
        plot_comparison(table, plot)
    return table


@command(
    "tables.print_export",
    merge_argument,
    folder_argument,
    click.option(
        "--task",
        metavar="NAME",
        shell_complete=completing.tasks,
        help="The task to export; left out, the whole merge.",
    ),
    flag(
        "--adapter",
        help="Write low-rank products on the base in PEFT's format: for merges of LoRA adapters.",
    ),
    flag(
        "--peft",
        help="Write the backbone and one PEFT adapter per task: for PEFT, vLLM, LoRAX.",
    ),
    click.option(
        "--rank",
        type=int,
        metavar="R",
        help="With --peft: cut what tasks own whole to products of this rank, a power of two, and "
        "tell the loss.",
    ),
    flag("--onnx", help="Write one ONNX file per task, checked with onnxruntime on its pool."),
    dry_run_option,
    place_options,
    factory_option,
    signed_option,
    example="""export ten-scripts --task mnist ./mnist-merged
export ten-scripts ./ten-scripts-merged
export ten-scripts --peft ./for-peft
export ten-scripts --onnx ./for-onnx
export adapters --adapter ./one-adapter""",
)
def export(
    merge: str,
    task: str | None,
    directory: Path,
    adapter: bool,
    peft: bool,
    rank: int | None,
    onnx: bool,
    dry_run: bool,
    **places: Any,
) -> Any:
    """Write the model of one task of MERGE, or all of it, to DIR.

    With --task the folder is one that transformers' from_pretrained loads, and it answers exactly
    as the merge does for that task. Without, it holds every task over one backbone, and
    tintray.load opens it. With --adapter a merge of LoRA experts stays an adapter: one for PEFT
    with --task, else one for all tasks plus their tint layers. --peft and --onnx are for servers.
    A model card is in each.
    """
    if adapter + peft + onnx > 1:
        raise click.UsageError("--adapter, --peft and --onnx are three forms; give one of them")
    if rank is not None and not peft:
        raise click.UsageError("--rank is the rank of the adapters of --peft; give both")
    if dry_run:
        found = api.check_export(merge, task, directory, **places)
        what = f"{found.name}/{found.version}" + (f", task {task}," if task else "")
        merge = f"{found.name}/{found.version}"
        return rehearsed(f"{what} can be written to {directory}", merge=merge, path=None)
    if peft or onnx:
        form = "peft" if peft else "onnx"
        return api.export_for_servers(merge, form, directory, task=task, rank=rank, **places)
    return api.export(merge, task, directory, adapter=adapter, **places)


@command(
    "upkeep_tables.print_copied",
    merge_argument,
    click.argument("destination", metavar="DEST"),
    click.option(
        "--dest-catalog",
        metavar="URL",
        help="The catalog to enter the copy in [default: catalog.db in DEST, if that is a folder].",
    ),
    dry_run_option,
    place_options,
    example="copy ten-scripts/v2 s3://models/tintray",
)
def copy(
    merge: str,
    destination: str,
    dest_catalog: str | None,
    catalog: str,
    dry_run: bool,
    **_: Any,
) -> Record:
    """Copy MERGE to the store DEST, verified.

    DEST is a folder or an s3:// URL. The copy has the same name and version.
    """
    target, known = settings.chosen_destination(destination, dest_catalog)
    return stores.copy_merge(
        merge, target, catalog=catalog, destination_catalog=known, dry_run=dry_run
    )


@command(
    "upkeep_tables.print_shared",
    merge_argument,
    click.argument("destination", metavar="DEST"),
    click.option(
        "--license",
        "licence",
        metavar="ID",
        help="The licence that the card names, as the hub calls it: apache-2.0, mit, other.",
    ),
    flag("--public", help="Let everybody read a repository that is made; else it is private."),
    dry_run_option,
    place_options,
    example="""push ten-scripts hf://my-org/ten-scripts --license apache-2.0
push ten-scripts/v2 s3://models/shared/ten-scripts""",
)
def push(merge: str, destination: str, store: str, **options: Any) -> Record:
    """Share MERGE: write it, with a model card, to DEST.

    DEST is hf://org/name (a repository of the Hugging Face hub), s3://bucket/prefix or a folder.
    The hub's token is that of HF_TOKEN or of `hf auth login`. What is there already is verified.
    """
    return sharing.push(merge, destination, **options)


@command(
    "upkeep_tables.print_shared",
    click.argument("source", metavar="SOURCE"),
    folder_argument,
    signed_option,
    dry_run_option,
    example="pull hf://my-org/ten-scripts ./ten-scripts",
)
def pull(source: str, directory: Path, dry_run: bool) -> Record:
    """Bring a pushed merge to the new folder DIR, verified.

    SOURCE is hf://org/name, hf://org/name@revision, s3://bucket/prefix or a folder. Every command
    that takes MERGE takes the folder; `tintray copy DIR STORE` enters it in a store.
    """
    return sharing.pull(source, directory, dry_run=dry_run)


@command(
    "upkeep_tables.print_signed",
    merge_argument,
    path_option("--key", metavar="FILE", help="The private key [default: $TINTRAY_SIGNING_KEY]."),
    dry_run_option,
    place_options,
    example="sign ten-scripts/v2 --key ~/.ssh/id_ed25519",
)
def sign(merge: str, **options: Any) -> Record:
    """Sign MERGE, so that others can tell who made it.

    The key is an ed25519 key of `tintray new-key`, openssl or ssh-keygen, without a passphrase.
    The signature lies beside the manifest, which names all other files by their hash; nothing that
    was published changes. Copies, pushes and exports of the whole merge take it along.
    """
    return signing.sign_merge(merge, **options)


@command(
    "upkeep_tables.print_new_key",
    click.argument("path", metavar="FILE", type=click.Path(path_type=Path)),
    click.option("--name", metavar="NAME", help="Whose key it is [default: your user name]."),
    dry_run_option,
    example="new-key ~/.config/tintray/key",
)
def new_key(path: Path, name: str | None, dry_run: bool) -> Answer | Record:
    """Make a key to sign merges with.

    FILE is the private key, which only you may read; FILE.pub has the public one. Whoever is to
    trust you puts its line into the file that their setting `trust` names.
    """
    if dry_run:
        beside = signing.check_new_pair(path)
        return rehearsed(f"a key can be written to {path} and {beside}", path=None)
    return signing.new_pair(path, name)


@command(*("growth_tables.print_history", *_of_merge), quick=True, example="history ten-scripts")
def history(merge: str, catalog: str, **_: Any) -> Sequence[Record]:
    """Draw which version of MERGE grew from which, and how."""
    return versions.history(merge, catalog=catalog)


@command(
    "growth_tables.print_merge_difference",
    merge_argument,
    click.argument("other", metavar="OTHER", shell_complete=completing.merges),
    catalog_options,
    example="diff-merges ten-scripts/v1 ten-scripts/v2",
)
def diff_merges(merge: str, other: str, catalog: str) -> Record:
    """Show what changed from MERGE to OTHER, by task and layer."""
    return merge_difference.diff_merges(merge, other, catalog=catalog)


@command(
    "tables.print_summary",
    merge_argument,
    click.option("--to", metavar="VERSION", help="An ancestor, such as v1 [default: the parent]."),
    signed_option,
    dry_run_option,
    place_options,
    example="rollback ten-scripts --to v2",
)
def rollback(merge: str, to: str | None, dry_run: bool, **places: Any) -> Any:
    """Publish an earlier version of MERGE again, as its newest.

    Nothing is undone: versions never change, and the new one says where it came from.
    """
    if dry_run:
        now, before = rolling_back.way_back(merge, to, **places)
        text = f"what {before} is would follow {now} as the newest"
        return rehearsed(text, merge=now, to=before)
    return rolling_back.rollback(merge, to, **places)


@command(
    *("tables.print_summary", merge_argument, dry_run_option, place_options, signed_option),
    watched=True,
    example="add-router ten-scripts/v1",
)
def add_router(merge: str, dry_run: bool, **options: Any) -> Any:
    """Publish a child of MERGE that routes examples to tasks.

    For merges that were made without (by an earlier version, or with route: false). It reads the
    pools of the tasks; nothing else changes.
    """
    if dry_run:
        parent, size = adding.rehearse(merge, **options)
        text = f"a child of {parent} that routes can be published, with {size:,} bytes more"
        return rehearsed(text, merge=parent, bytes=size)
    return adding.add_router(merge, **options)


@command(
    "gate_tables.print_check",
    merge_argument,
    click.option(
        "--min-kept",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="The least share of the experts' accuracy, such as 0.98: a mean over tasks.",
    ),
    click.option(
        "--max-loss",
        type=click.FloatRange(0),
        metavar="POINTS",
        help="What any task may lose against its expert: points of a share, percent of an error.",
    ),
    click.option(
        "--against",
        metavar="MERGE",
        shell_complete=completing.merges,
        help="Another merge, such as tiny@production, which --max-loss compares with instead.",
    ),
    flag("--measure", help="Measure it again, instead of what was measured when it was made."),
    place_options,
    factory_option,
    signed_option,
    example="""check ten-scripts --min-kept 0.98 --max-loss 1
check ten-scripts --max-loss 0.5 --against ten-scripts@production""",
)
def check(merge: str, **options: Any) -> Answer:
    """Tell a pipeline whether MERGE is good enough.

    The exit code is 0 if every limit holds, else 1. Without --measure nothing is
    computed.
    """
    if options["min_kept"] is None and options["max_loss"] is None:
        raise click.UsageError("expected --min-kept or --max-loss, or both")
    from tintray.jobs.display.progress import watch

    with watch() if options["measure"] else nullcontext() as on_event:
        report = api.check(merge, on_event=on_event, **options)
    return Answer(report, code=0 if report.passed else 1)


@command(
    "gate_tables.print_aliases",
    click.argument("merge", metavar="NAME[@ALIAS]", shell_complete=completing.merges),
    click.argument("version", metavar="[VERSION]", required=False, type=Version()),
    flag("--remove", help="Forget the alias."),
    dry_run_option,
    place_options,
    nothing="no alias yet; tintray alias NAME@production VERSION sets one",
    example="""alias ten-scripts@production v3
alias ten-scripts""",
)
def alias(merge: str, version: int | None, remove: bool, dry_run: bool, **places: Any) -> Any:
    """Let NAME@ALIAS mean a version of a merge, or list aliases.

    Every command that takes MERGE takes NAME@ALIAS, and a server of it takes up whatever version
    the alias comes to mean.
    """
    if remove and version is not None:
        raise click.UsageError("--remove forgets the alias; leave out VERSION")
    if version is None and not remove:
        return aliases.list_aliases(merge, **places)
    return [aliases.change_alias(merge, version, dry_run=dry_run, **places)]


@command(
    *("upkeep_tables.print_removed", merge_argument, dry_run_option, place_options),
    example="delete ten-scripts/v2",
)
def delete(merge: str, catalog: str, dry_run: bool, **_: Any) -> Record:
    """Delete MERGE from its store; gc frees the space.

    A folder has to lie in a store. Its version is never given again.
    """
    return stores.remove_merge(merge, catalog=catalog, dry_run=dry_run)
