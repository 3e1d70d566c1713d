"""Is it still good? New examples of a task, beside those that a merge was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import torch

from tintray.errors import DataError, InputError, IntegrityError, NotFoundError, StorageError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import load_merge, locate, store_of
from tintray.jobs.events import Notice, OnEvent, PhaseStarted, ignore
from tintray.jobs.records import Record
from tintray.jobs.runs.evaluate import (
    check_same,
    given_source,
    job_of,
    open_published_expert,
    read_data,
    read_pool,
)
from tintray.jobs.runs.pipeline import device_here
from tintray.jobs.runs.routing import route_pool
from tintray.jobs.watching.advice import advice
from tintray.jobs.watching.remembered import keep_tensors, recall_tensors
from tintray.models.structure import copy_on
from tintray.pools import sequences
from tintray.pools.held_back import split_pool
from tintray.pools.pool import Pool
from tintray.published.files import reference_file
from tintray.published.manifest import TaskEntry
from tintray.published.merge import Merge
from tintray.references.estimates import Estimate, known_share
from tintray.references.observing import Observed
from tintray.references.reference import LEAST, MOST, Reference
from tintray.references.two_samples import Difference
from tintray.storage.artifacts.aliases import split_alias
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.tasks.evaluation import score
from tintray.tasks.outputs import Outputs
from tintray.tasks.registry import find_kind
from tintray.tinting.self_labels import known_by, observe, predict

ALPHA = 0.05
"""How often at most examples are said to differ which do not."""
EXAMPLES = 2000
"""New examples that are looked at."""

DRIFTED = 6
"""Exit code of ``tintray monitor`` where the examples differ."""


@dataclass(frozen=True)
class Drift(Record):
    """What new examples of a task are, beside those that its merge was measured on."""

    merge: str  # "name/v3"
    task: str
    data: str
    at: str  # ISO 8601, UTC
    examples: int
    known: int  # examples that they were compared with
    alpha: float
    drifted: bool  # whether anything differs, at this level
    differences: Sequence[Difference]
    estimate: Estimate | None  # of the share of right answers; None of values
    disagreement: Estimate | None  # the same by the expert's answers, where it was asked
    elsewhere: float | None  # share of the examples that look like another task's, or like none's
    advice: Sequence[str]  # what to do, a sentence each


def monitor(
    merge: str,
    task: str,
    data: str | None = None,
    *,
    from_serve: str | None = None,
    store: str | None = None,
    catalog: str | None = None,
    alpha: float = ALPHA,
    examples: int = EXAMPLES,
    expert: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> Drift:
    """Compare new examples of a task with those that its merge was measured on; no label is read.

    ``data`` is a path, or one with its split: ``new.npz#test``; ``examples`` of them are looked at,
    spread evenly. With ``expert`` the task's expert answers them too, and its disagreement gives a
    second estimate. In the place of data, ``from_serve`` is the URL of a server that answers with
    this merge and was told to observe; features and what inputs look like are not known then. What
    is found is entered in the catalog, if it knows the merge, but for a ``dry_run``.

    Raises NotFoundError for an unknown merge or task; DataError for examples that cannot be read or
    are too few; InputError where nothing is known to compare them with.
    """
    store, catalog = chosen(store, catalog)
    told = on_event or ignore
    url = locate(merge, catalog)
    opened = load_merge(url)
    entry = opened.task(task)
    place = store_of(url, store)
    if data is None:
        assert from_serve is not None, "one of both is given"
        told(PhaseStarted("reading", from_serve))
        observed = served(from_serve, task, opened.manifest.ref)
        _check_enough(len(observed), from_serve)
        reference = known_reference(opened, entry, place, told)
        found = drift_of((opened.manifest.ref, task, from_serve), reference, observed, alpha)
    else:
        found = _of_data(opened, entry, data, examples, place, alpha, expert, told)
    if not dry_run:
        _enter(found, url, catalog, told)
    return found


def _of_data(
    merge: Merge,
    entry: TaskEntry,
    data: str,
    examples: int,
    store_url: str,
    alpha: float,
    expert: bool,
    told: OnEvent,
) -> Drift:
    source = given_source(entry.pool, data, examples)
    told(PhaseStarted("reading", data))
    _, pool = read_data(merge, entry, source, f"--data {data}")
    _check_enough(len(pool), f"--data {data}")
    reference = known_reference(merge, entry, store_url, told)
    told(PhaseStarted("answering", f"{len(pool):,} examples"))
    device = device_here(job_of(merge))
    module = copy_on(merge.for_task(entry.name), device)
    pool = sequences.completed(module, pool, device)
    outputs, observed = observe(module, pool, find_kind(entry.kind), device=device)
    known = (merge, entry, pool, device)
    disagreement = _disagreement(*known, outputs, observed) if expert else None
    of = (merge.manifest.ref, entry.name, data)
    return drift_of(of, reference, observed, alpha, disagreement, _elsewhere(*known))


def _check_enough(examples: int, where: str) -> None:
    if examples < LEAST:
        raise DataError(
            f"{where}: expected {LEAST} examples or more, found {examples:,}; so few tell nothing, "
            "collect more"
        )


def served(url: str, task: str, ref: str) -> Observed:
    """What a server has kept of its newest answers for a task of the merge ``ref``.

    Raises InputError with the server's own sentence, or where it answers with another version.
    """
    from tintray.jobs.serving.start import ask  # it imports what a server needs

    if not url.startswith(("http://", "https://")):
        raise InputError(f"--from-serve {url!r:.100}: expected one such as http://127.0.0.1:8000")
    found = ask(url, f"/v1/tasks/{quote(task, safe='')}/observed")
    try:
        version, classes = found["version"], found["classes"]
        numbers = {str(name): torch.tensor(of).float() for name, of in found["numbers"].items()}
        whole = None if None in classes else torch.tensor(classes, dtype=torch.int64)
        if len({len(classes), *map(len, numbers.values())}) > 1 or not numbers:
            raise ValueError("lengths differ")
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"--from-serve {url}: expected what `tintray serve --observe` answers, found "
            f"{found!r:.80}"
        ) from error
    if version != ref:
        raise InputError(
            f"--from-serve {url}: it answers with {version!r:.100}, expected {ref}; name that one"
        )
    return Observed(numbers, whole, None)


def drift_of(
    of: tuple[str, str, str],
    reference: Reference,
    observed: Observed,
    alpha: float,
    disagreement: Estimate | None = None,
    elsewhere: float | None = None,
) -> Drift:
    """What was observed of a task's new examples, compared; ``of`` are merge, task and data."""
    differences = reference.compare(observed)
    drifted = any(difference.adjusted <= alpha for difference in differences)
    estimate = reference.estimate(observed)
    return Drift(
        *of,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        examples=len(observed),
        known=len(reference),
        alpha=alpha,
        drifted=drifted,
        differences=differences,
        estimate=estimate,
        disagreement=disagreement,
        elsewhere=elsewhere,
        advice=advice(of[0], of[1], differences, alpha, estimate, elsewhere),
    )


def known_reference(
    merge: Merge, entry: TaskEntry, store_url: str, on_event: OnEvent = ignore
) -> Reference:
    """What new examples of a task are compared with: of the merge, or measured now and kept.

    Raises InputError for a merge without it whose data are gone, or are too few.
    """
    if (published := merge.reference(entry.name)) is not None:
        return published
    name, store = reference_file(entry.name), open_store(store_url)
    kept = recall_tensors(store, merge.manifest, name)
    if kept is not None:
        return Reference.read(kept, f"what was measured of task '{entry.name}'")
    told = f"{merge.url} was published without what new examples are compared with"
    on_event(Notice(f"{told}; it is measured now"))
    try:
        measured = entry.test or entry.pool
        source, pool = read_pool(merge, entry, measured)
        check_same(entry.name, source, pool, measured)
    except InputError as error:
        raise InputError(
            f"{told}, and the data of task '{entry.name}' cannot be read ({error}); restore them, "
            f"or publish it anew with `tintray refresh-task {merge.manifest.ref} {entry.name}`"
        ) from error
    if entry.test is None:
        seed = job_of(merge).fit.seed
        pool = pool[split_pool(len(pool), min(MOST, len(pool)), seed, entry.name)[1]]
    device = device_here(job_of(merge))
    module = copy_on(merge.for_task(entry.name), device)
    pool = sequences.completed(module, pool, device)
    kind = find_kind(entry.kind)
    _, observed = observe(module, pool, kind, device=device)
    reference = known_by(module, pool, kind, observed, entry.task_score, device=device)
    if reference is None:
        raise InputError(
            f"task '{entry.name}' of {merge.url} was measured on {len(pool)} examples; expected "
            f"{LEAST} or more, to compare new ones with"
        )
    keep_tensors(store, merge.manifest, name, reference.tensors(), on_event)
    return reference


def _disagreement(
    merge: Merge,
    entry: TaskEntry,
    pool: Pool,
    device: str,
    outputs: Outputs,
    observed: Observed,
) -> Estimate | None:
    """How many answers are right, by how many more are not the expert's than there were.

    Merge and expert err together, so that errors are counted in disagreements: as many to one as
    when the merge was made (after Jiang et al., arXiv 2106.13799, where the two are independent).
    """
    metric, known = known_share(entry.task_score)
    before = 1 - entry.score.agreement
    if observed.classes is None:
        return None
    expert, kind = open_published_expert(merge, entry, device)[1], find_kind(entry.kind)
    theirs = predict(expert, pool, kind, device=device)
    now = 1 - score(entry.name, kind, outputs, theirs, None, pool.mask).agreement
    least = 1 / max(entry.score.examples, 1)  # that none was seen does not say that there is none
    value = max(0.0, 1 - now * (1 - known) / max(before, least))
    spread = abs(known - value) / 2
    return Estimate(metric, known, value, spread, "disagreement with the expert")


def _elsewhere(merge: Merge, entry: TaskEntry, pool: Pool, device: str) -> float | None:
    """The share of examples that the merge's router takes for others; None where it has none."""
    try:
        routed = route_pool(merge, pool, device)
    except (NotFoundError, InputError, IntegrityError):
        return None
    return sum(task != entry.name for task in routed.tasks) / len(routed.tasks)


def _enter(found: Drift, url: str, catalog: str, on_event: OnEvent) -> None:
    """Enter a check in the catalog; one that cannot be is told of, no more."""
    try:
        with as_input_error(), Catalog.open(catalog, create=False) as opened:
            row = opened.merges.find(found.merge)
            if row.url == url:
                at = datetime.fromisoformat(found.at)
                opened.checks.record(row, found.task, at, found.to_json())
                return
        why = f"{found.merge} of the catalog is another merge"
    except (InputError, StorageError) as error:
        why = str(error)
    on_event(Notice(f"the check is in no history: {why}"))


def history(
    merge: str, task: str | None = None, *, catalog: str | None = None
) -> list[dict[str, Any]]:
    """What was found of a merge's tasks, of all its versions or of one, oldest first.

    Raises NotFoundError with the nearest name, if the catalog has no such merge.
    """
    _, catalog = chosen(None, catalog)
    with as_input_error(), Catalog.open(catalog, create=False) as opened:
        if (aliased := split_alias(merge)) is not None:
            merge = aliased[0]
        row = opened.merges.find(merge)
        checks = opened.checks.all(row.name, task)
    one = "/v" in merge
    return [dict(of.found) for of in checks if not one or of.merge == row.ref]
