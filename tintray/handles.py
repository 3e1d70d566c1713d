"""What ``import tintray`` hands out: merges and jobs as objects, and the calls that give them.

A merge in a folder of this machine needs neither jobs nor stores. What does need them imports them
when it is called.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from tintray.configuration import may_be_set
from tintray.errors import CancelledError, TintrayError
from tintray.published.manifest import MANIFEST, Manifest
from tintray.published.merge import Merge as PublishedMerge
from tintray.published.merge import open_folder
from tintray.seals import unseal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tintray.jobs.config.job_file import JobSpec
    from tintray.jobs.events import OnEvent
    from tintray.jobs.queue.differences import JobDifference
    from tintray.jobs.queue.views import JobStatus
    from tintray.jobs.results import CompareTable, EvalTable, MergeSummary
    from tintray.jobs.runs.evaluate_data import MeasuredData
    from tintray.jobs.runs.history import Version
    from tintray.jobs.runs.merge_difference import MergeDifference
    from tintray.jobs.upkeep.results import Removed
    from tintray.jobs.upkeep.signing import Signed
    from tintray.jobs.watching.conflicts import Conflicts
    from tintray.jobs.watching.explaining import Explanation
    from tintray.jobs.watching.monitoring import Drift
    from tintray.published.exported import Exported
    from tintray.published.signatures import Signer
    from tintray.serving.answers import Answer
    from tintray.serving.engine import Engine


class Merge(PublishedMerge):
    """One version of a published merge: the models of its tasks, and what can be done with it.

    ``store`` and ``catalog`` are where its children go; left out, the store that it lies in, and
    the catalog of the settings.
    """

    def __init__(
        self,
        manifest: Manifest,
        fetch: Callable[[str], Path],
        url: str,
        factory: str | None = None,
        *,
        store: str | None = None,
        catalog: str | None = None,
        signatures: Callable[[], bytes] = bytes,
    ) -> None:
        super().__init__(manifest, fetch, url, factory, signatures=signatures)
        root, mark, _ = url.rpartition("/merges/")
        self.held: object = None  # what has to live as long as it does
        store = store or (root if mark else None)
        self._places: dict[str, Any] = {"store": store, "catalog": catalog}
        self._engine: Engine | None = None

    @property
    def ref(self) -> str:
        """Its name and version, such as ``digits/v3``."""
        return self.manifest.ref

    def summary(self) -> MergeSummary:
        """What it is, kept and cost, as ``tintray show`` tells."""
        from tintray.jobs.runs.summaries import summary

        return summary(self.manifest, self.url)

    @overload
    def predict(self, task: str, inputs: Mapping[str, Tensor]) -> Tensor: ...

    @overload
    def predict(self, task: str, inputs: Iterable[Any]) -> list[Answer]: ...

    def predict(self, task: str, inputs: Any) -> Any:
        """Answers to a list or an array of examples of one task; see :meth:`predict_mixed`.

        Of a mapping of tensors, a batch that is prepared already, it is what the task's model
        gives, such as logits [N, classes].
        """
        if isinstance(inputs, Mapping):
            return super().predict(task, inputs)
        return self.predict_mixed([(task, one) for one in inputs])

    def predict_mixed(self, examples: Iterable[tuple[str, Any]]) -> list[Answer]:
        """Answers to examples of any tasks, each a task and an input, in one pass where it can be.

        An input is an image (an array, the bytes of a file, or one of Pillow's), a text or a pair
        of texts, or a list of words, as the task's expert was trained on. Answers have a label, its
        confidence, the task, the version and the values behind them.

        Raises InputError naming the first example that cannot be used.
        """
        if self._engine is None:
            from tintray.serving.engine import Engine

            self._engine = Engine(self)
        given = list(examples)
        answers = self._engine.answer(given)
        for number, (answer, (task, _)) in enumerate(zip(answers, given, strict=True)):
            if isinstance(answer, TintrayError):
                raise type(answer)(f"example {number} (task '{task}'): {answer}")
        return cast("list[Answer]", answers)

    def evaluate(
        self,
        *,
        route: bool = False,
        foreign: Sequence[str] = (),
        on_event: OnEvent | None = None,
    ) -> EvalTable:
        """Measure it again, on the data of its job; see ``jobs.api.evaluate`` for routing."""
        from tintray.jobs import api

        told: Any = {"route": route, "foreign": foreign, "on_event": on_event}
        return api.evaluate(self.url, **told, **self._places)

    def evaluate_data(self, **options: Any) -> MeasuredData:
        """Measure it on other data, or under corruptions; see ``jobs.runs.evaluate_data``."""
        from tintray.jobs.runs.evaluate_data import evaluate_data

        return evaluate_data(self.url, **options, **self._places)

    def compare(
        self, methods: Sequence[str] | None = None, *, on_event: OnEvent | None = None
    ) -> CompareTable:
        """Measure it beside its experts and other merging methods (names, or ``["all"]``)."""
        from tintray.jobs import api

        return api.compare(self.url, methods=methods, on_event=on_event, **self._places)

    def report(
        self, output: Path | str | None = None, *, form: str = "html", measure: bool = False
    ) -> Path | str:
        """Write all that is known of it, as a page, ``"md"`` or ``"json"``; the path, or the text.

        With ``measure``, averaging, task arithmetic and conflicts are measured first.
        """
        from tintray.jobs.watching.writing import write_report

        path = None if output is None else Path(output)
        return write_report(self.url, path, form=form, measure=measure, **self._places)

    def conflicts(
        self,
        *,
        examples: int = 128,
        try_rounds: int | None = None,
        on_event: OnEvent | None = None,
    ) -> Conflicts:
        """Which of its tasks fight; see ``tintray.jobs.watching.conflicts``."""
        from tintray.jobs.watching.conflicts import conflicts

        told: Any = {"examples": examples, "try_rounds": try_rounds, "on_event": on_event}
        return conflicts(self.url, **told, **self._places)

    def explain(
        self,
        task: str,
        *,
        examples: int = 256,
        nearest: int = 5,
        on_event: OnEvent | None = None,
    ) -> Explanation:
        """What the tint layer of a task learned; see ``tintray.jobs.watching.explaining``."""
        from tintray.jobs.watching.explaining import explain

        told: Any = {"examples": examples, "nearest": nearest, "on_event": on_event}
        return explain(self.url, task, **told, **self._places)

    def monitor(self, task: str, data: str | None = None, **options: Any) -> Drift:
        """Whether new examples of a task are like the known ones; see ``watching.monitoring``."""
        from tintray.jobs.watching.monitoring import monitor

        return monitor(self.url, task, data, **options, **self._places)

    def export(self, task: str | None, directory: Path | str, *, adapter: bool = False) -> Path:
        """Write a task's model as a folder for ``from_pretrained``, or all tasks if it is None.

        The latter is a folder that ``tintray.load`` opens. As an ``adapter`` either has low-rank
        products in the place of the backbone, in PEFT's format.
        """
        if not adapter:
            return super().export(task, Path(directory))
        from tintray.jobs.runs.export import export_adapter

        return export_adapter(self, task, Path(directory))

    def export_peft(
        self, directory: Path | str, tasks: Sequence[str] | None = None, *, rank: int | None = None
    ) -> Exported:
        """Write a plain backbone and one PEFT adapter for each of its tasks, or of ``tasks``.

        With a ``rank``, a power of two, what tasks own whole is cut to products of that rank, and
        the answer tells what is lost.
        """
        from tintray.jobs.runs.export import export_peft

        return export_peft(self, Path(directory), tasks, rank)

    def export_onnx(self, directory: Path | str, tasks: Sequence[str] | None = None) -> Exported:
        """Write one ONNX file for each of its tasks, or of ``tasks``, checked on their pools."""
        from tintray.jobs.runs.export import export_onnx

        return export_onnx(self, Path(directory), tasks)

    def add(self, tasks: Sequence[str | Path], **options: Any) -> Merge:
        """Publish a child with the tasks of these files too.

        ``options`` are those of ``tintray.jobs.runs.grow.add``: ``mode``, ``rebase``,
        ``overrides``, ``on_event``. The same holds for :meth:`refresh` and :meth:`remove`.
        """
        from tintray.jobs.runs.grow import add

        return self._child(add(self.url, tasks, **self._places, **options))

    def refresh(self, task: str, **options: Any) -> Merge:
        """Publish a child with a task anew: its ``expert``, its ``pool``, or what lies there."""
        from tintray.jobs.runs.grow import refresh

        return self._child(refresh(self.url, task, **self._places, **options))

    def remove(self, tasks: Sequence[str], **options: Any) -> Merge:
        """Publish a child without these tasks."""
        from tintray.jobs.runs.grow import remove

        return self._child(remove(self.url, tasks, **self._places, **options))

    def rollback(self, to: str | None = None) -> Merge:
        """Publish its parent, or the version ``to``, again as the newest version."""
        from tintray.jobs.runs.rollback import rollback

        return self._child(rollback(self.url, to, **self._places))

    def history(self) -> list[Version]:
        """Every version in the tree that it is in, oldest first."""
        from tintray.jobs.runs.history import history

        return history(self.ref, catalog=self._catalog())

    def diff(self, other: Merge | str) -> MergeDifference:
        """What another merge has that this one has not: per task, and per layer."""
        from tintray.jobs.runs.merge_difference import diff_merges

        name = other.url if isinstance(other, Merge) else other
        return diff_merges(self.url, name, catalog=self._catalog())

    def sign(self, key: Path | str | None = None) -> Signed:
        """Sign it with the private key in a file; left out, with that of the settings."""
        from tintray.jobs.upkeep.signing import sign_merge

        return sign_merge(self.url, None if key is None else Path(key), **self._places)

    def signers(self) -> Sequence[Signer]:
        """Who has signed it, with the names that the settings have for their keys."""
        from tintray.jobs.upkeep.signing import who_signed

        return who_signed(self)

    def delete(self) -> Removed:
        """Take it out of its store and its catalog; the next collection frees its files."""
        from tintray.jobs.upkeep.stores import remove_merge

        return remove_merge(self.url, catalog=self._catalog())

    def _catalog(self) -> str:
        from tintray.jobs.config.settings import chosen

        return cast(str, chosen(**self._places)[1])

    def _child(self, made: MergeSummary) -> Merge:
        return load(made.url, factory=self._trusted, require_signed=False, **self._places)

    def __repr__(self) -> str:
        tasks = ", ".join(self.tasks[:5]) + (", …" if len(self.tasks) > 5 else "")
        return f"<Merge {self.ref}: {len(self.tasks)} tasks ({tasks}), {self._size()}>"

    def _repr_html_(self) -> str:
        from tintray.jobs.watching.page import short_form
        from tintray.jobs.watching.report import of_manifest

        return short_form(of_manifest(self.manifest, self.url))

    def _size(self) -> str:
        return f"{self.manifest.backbone_parameters:,} shared parameters"


class Job:
    """A job that a catalog knows; ``tintray.submit`` and ``tintray.job`` give one."""

    def __init__(self, id: str, *, catalog: str | None = None) -> None:
        self.id = id
        self._catalog = catalog

    def status(self) -> JobStatus:
        """All that the catalog knows of it; right also where its cluster is gone."""
        from tintray.jobs.queue.views import status

        return status(self.id, catalog=self._catalog)

    def wait(self, timeout: float | None = None, *, on_event: OnEvent | None = None) -> JobStatus:
        """Follow it until it is over or lost, telling ``on_event`` what happens; its status then.

        Raises TimedOutError: it is neither after ``timeout`` seconds.
        """
        from tintray.jobs.queue.following import watch

        return watch(self.id, catalog=self._catalog, timeout=timeout, on_event=on_event)

    def result(self, timeout: float | None = None) -> Merge:
        """Wait until it is over, and open the merge that it published.

        Raises CancelledError: it was cancelled; TimedOutError: it is not over after ``timeout``
        seconds; TintrayError: it failed, or was lost; with the reason.
        """
        found = self.wait(timeout)
        if found.merge is None:
            kind = CancelledError if found.state == "cancelled" else TintrayError
            raise kind(f"job {self.id} is {found.state}: {found.reason}; resume() lets it go on")
        return load(f"{found.store}/merges/{found.merge}", catalog=self._catalog)

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """What its driver said, in pieces; with ``follow``, until it is over."""
        from tintray.jobs.queue.following import logs

        return logs(self.id, catalog=self._catalog, follow=follow)

    def cancel(self, *, wait: bool = True, discard: bool = False) -> JobStatus:
        """Stop it, and keep its last checkpoint unless it is to be ``discard``-ed."""
        from tintray.jobs.queue.submission import cancel

        return cancel(self.id, catalog=self._catalog, wait=wait, discard=discard)

    def resume(self, *, address: str | None = None, on_event: OnEvent | None = None) -> JobStatus:
        """Let it go on from its last checkpoint, on its cluster, or at ``address``, or here."""
        from tintray.jobs.queue.submission import resume

        return resume(self.id, catalog=self._catalog, address=address, on_event=on_event)

    def retry(self, *, address: str | None = None, on_event: OnEvent | None = None) -> JobStatus:
        """Start it over, from its first round."""
        from tintray.jobs.queue.submission import resume

        places = {"catalog": self._catalog, "address": address}
        return resume(self.id, on_event=on_event, fresh=True, dry_run=False, **places)

    def diff(self, other: Job | str) -> JobDifference:
        """What differs between it and another job, or the job file at a path."""
        from tintray.jobs.queue.differences import diff

        name = other.id if isinstance(other, Job) else other
        return diff(self.id, name, catalog=self._catalog)

    def __repr__(self) -> str:
        try:
            now = self.status()
        except TintrayError as error:
            return f"<Job {self.id}: {error}>"
        rounds = f", round {now.round} of {now.rounds}" if now.round else ""
        return f"<Job {self.id}: {now.name}, {now.state}{rounds} ({now.reason})>"

    def _repr_html_(self) -> str:
        try:
            now = self.status()
        except TintrayError as error:
            return f"<p>{html.escape(f'job {self.id}: {error}')}</p>"
        head = ("task", "kind", "agreement")
        shares = ("" if t.agreement is None else f"{t.agreement:.1%}" for t in now.tasks)
        rows = [(t.name, t.kind, share) for t, share in zip(now.tasks, shares, strict=True)]
        return _html_table(repr(self).strip("<>"), head, rows)


def load(
    merge: str | Path,
    *,
    store: str | None = None,
    catalog: str | None = None,
    factory: str | None = None,
    require_signed: bool | None = None,
) -> Merge:
    """Open a published merge: a folder, a URL, or a name in the catalog such as ``"x/v2"``.

    A merge of modules of a factory names that function. It runs only if you give the same name as
    ``factory``, or if your configuration has it in ``allow_factories``. With ``require_signed`` it
    has to be signed by one of the keys in ``trust``; left out, the configuration says whether.

    Raises NotFoundError if there is none of that name or at that place; SignatureError if it is not
    signed as it has to be.
    """
    name = str(merge)
    folder = None if "://" in name else Path(name).expanduser().absolute()
    if folder is not None and _holds_merge(folder):
        found = open_folder(folder, lambda data: unseal(data, f"{folder}/{MANIFEST}"), factory)
        if found.manifest.job.factory not in (None, factory):
            from tintray.jobs.config.settings import share_factories

            share_factories()
        if require_signed or (require_signed is None and may_be_set("require_signed")):
            from tintray.jobs.config.signing import check_if_required

            check_if_required(found, require_signed)
    else:
        from tintray.jobs.config.settings import chosen
        from tintray.jobs.engine.finding import load_merge, locate

        place = locate(name, chosen(store, catalog)[1])
        found = load_merge(place, factory, require_signed=require_signed)
    return Merge(
        *(found.manifest, found.fetch, found.url, factory),
        store=store,
        catalog=catalog,
        signatures=found.signatures,
    )


def _holds_merge(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file()
    except OSError:  # too long for a path: a name
        return False


def run(job: JobSpec | Path | str, *, on_event: OnEvent | None = None) -> Merge:
    """Run a job, or the job file at a path, to its published merge.

    Raises InputError before any compute is spent, if the job file, an expert, data, store or
    catalog cannot be used; TintrayError if something fails while running; nothing is published
    then.
    """
    from tintray.jobs import api

    spec = _spec(job)
    made = api.run(spec, on_event=on_event)
    places = {"store": spec.store, "catalog": spec.catalog, "factory": spec.factory}
    return load(made.url, **places, require_signed=False)  # nobody can have signed it yet


def merge(
    base: nn.Module,
    experts: Mapping[str, nn.Module],
    data: Mapping[str, Any],
    *,
    processor: Any = None,
    folder: Path | str | None = None,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Merge:
    """Merge modules that live in this process, without a job file::

        merge = tintray.merge(base, {"mnist": vit_a, "eurosat": vit_b},
                              {"mnist": images, "eurosat": {"pool": more, "test": (some, labels)}},
                              processor=processor, fit={"rounds": 200})

    ``base`` and ``experts`` are models of transformers, or any modules of one architecture, their
    last child the head.

    ``data`` has of each task its pool: images (an array or a tensor of 8-bit values [N, height,
    width, 3] or channels first, or a list) or a list of texts. Or a mapping with ``pool``, perhaps
    ``test`` (a pair of inputs and labels), ``kind``, and other fields of a task of a job file.

    ``processor`` is the image processor or tokenizer, or one for each task by its name. Modules
    that are none of transformers' need none: they get images in [0, 1].

    Modules, data and merge are saved in ``folder``; left out, in a temporary one, which goes when
    the merge that is returned does. ``settings`` are sections of the job file, such as ``fit`` or
    ``merge``; also ``name`` and ``store``.

    Raises InputError before any compute is spent, if something cannot be merged.
    """
    from tempfile import TemporaryDirectory

    from tintray.jobs.config.job_file import parse_spec
    from tintray.jobs.runs.live import write_job

    held = TemporaryDirectory(prefix="tintray-") if folder is None else None
    place = Path(held.name if held else folder or "").absolute()
    job = write_job(place, base, experts, data, processor, settings)
    made = run(parse_spec(job, folder=place), on_event=on_event)
    made.held = held
    return made


def submit(
    job: JobSpec | Path | str,
    *,
    key: str | None = None,
    priority: int = 0,
    address: str | None = None,
) -> Job:
    """Enter a job in the queue of a Ray cluster, and hand it over if its turn has come.

    ``key`` is a name of your own for this submission: the same job with the same key is entered
    once. The highest ``priority`` goes first. ``address`` is the cluster's dashboard, such as
    ``http://head:8265``; left out, that of the job file, else of the settings.

    Raises InputError: the job file, what it refers to, the store, the catalog or the cluster cannot
    be used, or the key is that of another job. Nothing has been entered then.
    """
    from tintray.jobs.queue import submission

    spec = _spec(job)
    entered = submission.submit(spec, key=key, priority=priority, address=address)
    return Job(entered.id, catalog=spec.catalog)


def job(id: str = "latest", *, catalog: str | None = None) -> Job:
    """The job that ``id`` means: an id, how one begins, a name, or ``latest``.

    Raises NotFoundError or InputError: there is none (with the nearest), or there are several.
    """
    from tintray.jobs.queue.views import status

    return Job(status(id, catalog=catalog).id, catalog=catalog)


def _spec(job: JobSpec | Path | str) -> JobSpec:
    from tintray.jobs.config.job_file import load_spec

    return load_spec(Path(job)) if isinstance(job, str | Path) else job


def _html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return (
        f"<table><caption>{html.escape(caption)}</caption>"
        f"<thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"
    )
