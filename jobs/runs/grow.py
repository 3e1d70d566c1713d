"""A growth job, from a published merge to its child: the guard stands before publication."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tintray.errors import CheckpointError, FitError, InputError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.arrays import peak_memory
from tintray.jobs.engine.backend import Backend
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.configs import Prepared, TaskFacts
from tintray.jobs.engine.tint_worker import TintWorkerPool
from tintray.jobs.events import Notice, OnEvent, Published, ignore
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs.change import Change, addition, overridden, part_of, read_tasks, refreshed
from tintray.jobs.runs.child import Child, publish_child
from tintray.jobs.runs.growth_modes import Candidate, Growing
from tintray.jobs.runs.guard import LADDER, Asked, Mode, Verdict, best, next_mode
from tintray.jobs.runs.job_run import JobRun
from tintray.jobs.runs.parent import (
    Parent,
    child_ground,
    make_known,
    open_parent,
    sums_task_vectors,
)
from tintray.jobs.runs.remove import remove_tasks
from tintray.jobs.runs.run import (
    backend_for,
    evaluated,
    on_prepared,
    open_store_and_catalog,
    tell_doubts,
    tell_shortfalls,
    tell_warnings,
)
from tintray.jobs.runs.summaries import summary
from tintray.models.base_similarity import UNRELATED, is_unrelated
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.merges import ParentChangedError
from tintray.storage.catalog.states import JobState
from tintray.tasks.evaluation import check_finite
from tintray.tasks.metrics import find_metric

_REBASES = 5


class GuardError(FitError):
    """Nothing was published: an old task would have lost more than the tolerance."""


def grow(
    merge: str,
    change: Callable[[Parent], Change],
    *,
    store: str,
    catalog: str,
    mode: Asked = "auto",
    rebase: bool = False,
    adjust: Callable[[JobSpec], JobSpec] = lambda spec: spec,
    on_event: OnEvent,
) -> Manifest:
    """Publish a child of a merge; returns its manifest.

    Parameters
    ----------
    merge
        The parent: a name (its newest version), ``name/v1`` or a URL.
    change
        What to change, given the parent.
    rebase
        If a newer version comes while this runs, do it again from there.
    adjust
        Lays overrides over the child's job.

    Raises
    ------
    InputError
        Before compute is spent, if the change cannot be made.
    GuardError
        If an old task would lose more than the tolerance.
    ParentChangedError
        If a newer version came meanwhile, without ``rebase``.
    """
    for left in reversed(range(_REBASES)):
        parent = open_parent(merge, store=store, catalog=catalog)
        try:
            _check_mode(parent, mode)
            return _grow_once(parent, change(parent), mode, adjust, "/" not in merge, on_event)
        except ParentChangedError as error:
            if not rebase or not left:
                raise
            on_event(Notice(f"{error}; grows from the newest version now"))
            merge = parent.ref.name
    raise AssertionError("the loop returns or raises")


def _grow_once(
    parent: Parent,
    change: Change,
    mode: Asked,
    adjust: Callable[[JobSpec], JobSpec],
    of_newest: bool,
    on_event: OnEvent,
) -> Manifest:
    # Growing computes on CPUs: what is cached of a prefix lies in memory.
    spec = adjust(change.applied(parent.spec, str(parent.ref))).on_cpus()
    parent.check_files(change.names)
    ground = child_ground(parent, change, spec)
    place, opened = open_store_and_catalog(spec)
    with opened as catalog:
        make_known(parent, catalog)
        head = _newest(catalog, parent, of_newest)
        run = JobRun(_enter(catalog, spec, parent, change), catalog, on_event)
        with run.running(), backend_for(spec, ground) as fleet:
            if change.operation == "remove":
                child = remove_tasks(run, parent, change, spec, ground, fleet)
            else:
                child = _add(run, parent, change, spec, ground, fleet, mode)
            _guard(run, parent, child)
            check_finite(child.scores.values())
            facts = {name: found for name, (found, _) in child.new.items()}
            tell_shortfalls(run, spec, facts, child.kept, child.scores.values())
            with run.phase(JobState.EVALUATING, "the guard has passed"):
                for score in child.scores.values():
                    on_event(evaluated(score))
            with run.phase(JobState.PUBLISHING, f"writing the merge to {place.url}"):
                manifest = publish_child(child, run, head)
                run.move(JobState.SUCCEEDED, f"published as {manifest.ref}")
    on_event(Published(f"{place.url}/merges/{manifest.ref}"))
    return manifest


def _newest(catalog: Catalog, parent: Parent, of_newest: bool) -> int:
    """The newest version when the change begins: one that comes later is a conflict.

    A parent that was named by its version may be an older one: then the tree gets a branch.
    """
    if of_newest:
        return parent.ref.version
    return max(catalog.merges.find(parent.ref.name).version, parent.ref.version)


def _enter(catalog: Catalog, spec: JobSpec, parent: Parent, change: Change) -> str:
    record = spec.record() | {"change": {"of": str(parent.ref), "operation": str(change)}}
    return catalog.jobs.create(spec.name, record, str(spec.store))


def _add(
    run: JobRun,
    parent: Parent,
    change: Change,
    spec: JobSpec,
    ground: SplitModel,
    fleet: Backend,
    mode: Asked,
) -> Child:
    new = part_of(spec, change.names).changed(tint={"learned": True})
    crew = TintWorkerPool(fleet, new, ground)
    with run.phase(JobState.PLANNING, f"checking the experts of {', '.join(change.names)}"):
        facts = crew.check()
        _check_kinship(facts, spec)
        tell_warnings(run, facts)
    with run.phase(JobState.PREPARING, "self-labels: each new expert predicts its pool once"):
        prepared = crew.label(on_prepared(run, len(new.tasks)))
        _check_doubts(run, prepared, spec)
        base = crew.base_blob(parent.store)
        run.used(KnownArtifact(base, "base", {"model": ground.digest}))
    growing = Growing(run, parent, change, spec, ground, fleet, crew, base, facts, prepared)
    with run.phase(JobState.FITTING, f"{change.operation} {', '.join(change.names)} ({mode})"):
        candidate = _climb(growing, mode)
    return _child(growing, candidate, mode)


def _check_kinship(facts: Mapping[str, TaskFacts], spec: JobSpec) -> None:
    """Refuse experts of another base: a merge that works is not put at risk for them."""
    for name, found in facts.items():
        if is_unrelated(found.base_similarity):
            raise CheckpointError(
                f"tasks.{name}.expert was not fine-tuned from the base of this merge: the cosine "
                f"between their weights is {found.base_similarity:.2f}, expected {UNRELATED:g} "
                "at least; "
                f"give an expert of {spec.base}"
            )


def _check_doubts(run: JobRun, prepared: Mapping[str, Prepared], spec: JobSpec) -> None:
    """Refuse experts that are hardly surer than chance, and tell what speaks against others."""
    for task in spec.tasks:
        found = prepared[task.name].doubt if task.name in prepared else None
        if found is not None and found.unsure:
            raise CheckpointError(
                f"tasks.{task.name}.expert: {task.expert} {found.said}; expected an expert that "
                "was trained for this task, on inputs prepared as here"
            )
    tell_doubts(run, prepared)


def _ladder(spec: JobSpec) -> tuple[Mode, ...]:
    """The ways that are open: to a merge of another method, its backbone as it is."""
    return LADDER if sums_task_vectors(spec) else LADDER[:1]


def _check_mode(parent: Parent, asked: Asked) -> None:
    if asked not in ("auto", *_ladder(parent.spec)):
        merge = parent.spec.merge
        raise InputError(
            f"--mode {asked} needs a merge that is a sum of task vectors; {parent.ref} was made by "
            f"'{merge.method}' from '{merge.init}': use --mode tint"
        )


def _climb(growing: Growing, asked: Asked) -> Candidate:
    """Try the ways of growing from the cheapest on, until one is enough."""
    target = growing.spec.growth.target
    ladder = _ladder(growing.spec)
    done: list[Verdict] = []
    while (mode := next_mode(asked, done, target, ladder)) is not None:
        if done:
            growing.tell(
                f"'{done[-1].mode}' is not enough: {done[-1].short(target)}; tries '{mode}'"
            )
        done.append(growing.attempt(mode).verdict)
    chosen = best(done, target)
    if chosen is None:
        chosen = done[-1]
    elif asked == "auto" and chosen.short(target):
        untried = [mode for mode in ladder if mode not in {verdict.mode for verdict in done}]
        gained = f", '{done[-1].mode}' has hardly gained" if untried else ""
        told = f"no way is enough{gained}; takes '{chosen.mode}': {chosen.short(target)}"
        growing.run.remark(told)
    elif chosen.short(target):
        growing.run.remark(f"'{asked}' was asked for, and is not enough: {chosen.short(target)}")
    return growing.candidates[done.index(chosen)]


def _child(growing: Growing, candidate: Candidate, asked: Asked) -> Child:
    entries = {name: (growing.facts[name], growing.prepared[name]) for name in growing.change.names}
    return Child(
        parent=growing.parent,
        spec=growing.spec,
        ground=growing.ground,
        change=growing.change,
        theta=candidate.theta,
        coefficients=candidate.coefficients,
        tints=candidate.tints,
        scores=candidate.scores,
        new=entries,
        kept=candidate.kept,
        losses=candidate.verdict.losses,
        peak_memory=growing.peak_memory + growing.crew.peak_memory() + peak_memory(),
        report={
            "asked": asked,
            "mode": candidate.verdict.mode,
            "target": growing.spec.growth.target,
            "agreement": dict(candidate.verdict.agreement),
            "attempts": [
                {
                    "mode": tried.verdict.mode,
                    "agreement": dict(tried.verdict.agreement),
                    "short": tried.verdict.short(growing.spec.growth.target),
                    "losses": [loss.record() for loss in tried.verdict.losses],
                    "abandoned": tried.verdict.abandoned,
                    "seconds": tried.seconds,
                }
                for tried in growing.candidates
            ],
        },
    )


def _guard(run: JobRun, parent: Parent, child: Child) -> None:
    """Refuse a child in which an old task lost more than the tolerance."""
    if not child.losses:
        return
    tolerance = child.spec.growth.tolerance
    said = "; ".join(map(str, child.losses))
    units = sorted({find_metric(loss.metric).lost_in for loss in child.losses})
    adding = child.change.operation != "remove"
    hint = "; --mode tint leaves the backbone as it is" if adding else ""
    raise GuardError(
        f"nothing was published by this change of {parent.ref}: {said}; growth.tolerance is "
        f"{tolerance:g} ({'; '.join(units)}){hint}"
    )


def add(
    merge: str,
    tasks: Sequence[str | Path],
    *,
    store: str | None = None,
    catalog: str | None = None,
    mode: Asked = "auto",
    rebase: bool = False,
    overrides: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> MergeSummary:
    """Publish a child of ``merge`` with the tasks of these files too."""
    store, catalog = chosen(store, catalog)
    change = addition([task for path in tasks for task in read_tasks(Path(path))])
    return _grown(merge, change, store, catalog, mode, rebase, overrides, on_event)


def remove(
    merge: str,
    tasks: Sequence[str],
    *,
    store: str | None = None,
    catalog: str | None = None,
    rebase: bool = False,
    overrides: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> MergeSummary:
    """Publish a child of ``merge`` without these tasks."""
    store, catalog = chosen(store, catalog)
    change = Change("remove", tuple(dict.fromkeys(tasks)))
    return _grown(merge, change, store, catalog, "auto", rebase, overrides, on_event)


def refresh(
    merge: str,
    task: str,
    *,
    store: str | None = None,
    catalog: str | None = None,
    expert: str | None = None,
    pool: str | None = None,
    mode: Asked = "auto",
    rebase: bool = False,
    overrides: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> MergeSummary:
    """Publish a child of ``merge`` with a task anew: its expert, its pool, or what lies there."""
    store, catalog = chosen(store, catalog)
    manifest = grow(
        merge,
        lambda parent: refreshed(parent.spec, task, expert=expert, pool=pool, folder=Path.cwd()),
        store=store,
        catalog=catalog,
        mode=mode,
        rebase=rebase,
        adjust=lambda spec: overridden(spec, overrides),
        on_event=on_event or ignore,
    )
    return _summary(manifest, store)


def _grown(
    merge: str,
    change: Change,
    store: str,
    catalog: str,
    mode: Asked,
    rebase: bool,
    overrides: Sequence[str],
    on_event: OnEvent | None,
) -> MergeSummary:
    manifest = grow(
        merge,
        lambda _: change,
        store=store,
        catalog=catalog,
        mode=mode,
        rebase=rebase,
        adjust=lambda spec: overridden(spec, overrides),
        on_event=on_event or ignore,
    )
    return _summary(manifest, store)


def _summary(manifest: Manifest, store: str) -> MergeSummary:
    return summary(manifest, f"{open_store(store).url}/merges/{manifest.ref}")
