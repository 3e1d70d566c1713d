"""What the command line does, as Python calls; ``tintray`` re-exports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import load_merge, locate, store_of
from tintray.jobs.events import OnEvent, ignore
from tintray.jobs.results import CompareTable, EvalTable, MergeSummary, TaskResult
from tintray.jobs.runs.gate import CheckReport, judge
from tintray.jobs.runs.merge_checkpoints import compose as compose
from tintray.jobs.runs.merge_checkpoints import merge_checkpoints as merge_checkpoints
from tintray.jobs.runs.merge_list import list_merges as list_merges
from tintray.jobs.runs.run import run_job
from tintray.jobs.runs.summaries import summary
from tintray.jobs.runs.validation import validate as validate
from tintray.jobs.upkeep.signing import who_signed
from tintray.new_folder import check_new
from tintray.published.exported import Exported
from tintray.published.merge import Merge
from tintray.storage.artifacts.store import open_store


def run(spec: JobSpec, *, on_event: OnEvent | None = None) -> MergeSummary:
    """Run a job to its published merge; see ``jobs.runs.run.run_job`` for what it raises."""
    manifest = run_job(spec, on_event or ignore)
    url = f"{open_store(spec.store).url}/merges/{manifest.ref}"
    return summary(manifest, url)


def show(merge: str, *, store: str | None = None, catalog: str | None = None) -> MergeSummary:
    """What a published merge is, kept and cost, from its manifest; and who has signed it."""
    url = locate(merge, chosen(store, catalog)[1])
    found = load_merge(url, require_signed=False)  # it is looked at, not used
    return replace(summary(found.manifest, url), signatures=who_signed(found))


def _opened(merge: str, store: str | None, catalog: str | None) -> Merge:
    return load_merge(locate(merge, chosen(store, catalog)[1]))


def evaluate(
    merge: str,
    *,
    store: str | None = None,
    catalog: str | None = None,
    route: bool = False,
    foreign: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> EvalTable:
    """Measure a published merge again, on the data of its job.

    With ``route`` also what becomes of its examples when nobody says which task they are of, and of
    ``foreign`` ones: data sets of none of its tasks, such as ``signs.npz`` or ``signs.npz#test``.

    Raises ``DataError`` if that data is gone, or is no longer the same.
    """
    from tintray.jobs.runs.evaluate import evaluate as measured

    store, catalog = chosen(store, catalog)
    url = locate(merge, catalog)
    place, told = store_of(url, store), on_event or ignore
    return measured(load_merge(url), place, told, route=route, foreign=foreign)


def compare(
    merge: str,
    *,
    store: str | None = None,
    catalog: str | None = None,
    methods: Sequence[str] | None = None,
    on_event: OnEvent | None = None,
) -> CompareTable:
    """Measure a merge beside its experts and other merging methods; its report has it then.

    ``methods`` are names, or ``["all"]``; left out, weight averaging and task arithmetic.
    """
    store, catalog = chosen(store, catalog)
    from tintray.jobs.watching import measuring

    return measuring.compare(locate(merge, catalog), store, on_event or ignore, methods)


def check_compare(
    merge: str,
    *,
    store: str | None = None,
    catalog: str | None = None,
    methods: Sequence[str] | None = None,
    on_event: OnEvent | None = None,
) -> tuple[str, list[str]]:
    """The merge that would be compared, and with which methods; nothing is measured.

    Raises InputError as ``compare`` does for a name that is none.
    """
    from tintray.jobs.runs.compare import RIVALS, choose

    found = load_merge(locate(merge, chosen(store, catalog)[1]))
    others = choose(methods or RIVALS, len(found.tasks), on_event or ignore)
    return str(found.manifest.ref), others


def check(
    merge: str,
    *,
    store: str | None = None,
    catalog: str | None = None,
    min_kept: float | None = None,
    max_loss: float | None = None,
    against: str | None = None,
    measure: bool = False,
    on_event: OnEvent | None = None,
) -> CheckReport:
    """Hold a merge to a least share of its experts' accuracy and a largest loss of any task.

    See ``jobs.runs.gate.judge``. ``against`` is another merge; with ``measure`` the merge is
    measured again, else what was measured when it was made is taken.
    """
    store, catalog = chosen(store, catalog)
    if measure:
        measured = evaluate(merge, store=store, catalog=catalog, on_event=on_event).tasks
    else:
        measured = _tasks(merge, store, catalog)
    before = _tasks(against, store, catalog) if against else ()
    return judge(
        *(merge, measured), min_kept=min_kept, max_loss=max_loss, against=against, before=before
    )


def _tasks(merge: str, store: str, catalog: str) -> Sequence[TaskResult]:
    found = _opened(merge, store, catalog)
    return summary(found.manifest, found.url).tasks


def export(
    merge: str,
    task: str | None,
    directory: Path,
    *,
    store: str | None = None,
    catalog: str | None = None,
    adapter: bool = False,
) -> Path:
    """Write one task's model as a folder that ``transformers.from_pretrained`` loads.

    Without a ``task`` the whole merge is written, as one folder that ``tintray.load`` opens. As an
    ``adapter`` either has low-rank products in the place of the backbone, in PEFT's format.
    See ``export_for_servers`` for the other forms.
    """
    found = _opened(merge, store, catalog)
    if not adapter:
        return found.export(task, directory)
    from tintray.jobs.runs.export import export_adapter

    return export_adapter(found, task, directory)


def check_export(
    merge: str,
    task: str | None,
    directory: Path,
    *,
    store: str | None = None,
    catalog: str | None = None,
) -> MergeSummary:
    """The merge that would be exported, in whatever form; nothing is written.

    Raises InputError if it has no such task, or the folder cannot be made.
    """
    found = _opened(merge, store, catalog)
    if task is not None:
        found.task(task)
    check_new(directory, or_empty=True)
    return summary(found.manifest, found.url)


def export_for_servers(
    merge: str,
    form: str,
    directory: Path,
    *,
    task: str | None = None,
    rank: int | None = None,
    store: str | None = None,
    catalog: str | None = None,
) -> Exported:
    """Write a merge as ``"peft"``, a backbone with an adapter per task, or as ``"onnx"`` files.

    With a ``task``, that of one task alone. See ``jobs.runs.export``.
    """
    from tintray.jobs.runs import export as exports

    found = _opened(merge, store, catalog)
    tasks = None if task is None else [task]
    if form == "onnx":
        return exports.export_onnx(found, directory, tasks)
    return exports.export_peft(found, directory, tasks, rank)
