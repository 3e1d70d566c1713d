"""Give a published merge what its router needs, from its tasks' pools: a new version of it."""

from __future__ import annotations

from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.errors import InputError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import blobs_of
from tintray.jobs.events import Notice, OnEvent, ignore
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs.evaluate import check_same, read_pool
from tintray.jobs.runs.parent import Parent, make_known, open_parent
from tintray.jobs.runs.pipeline import device_here
from tintray.jobs.runs.publication import Files, publication_time, write_merge
from tintray.jobs.runs.summaries import summary
from tintray.published.files import routing_file
from tintray.published.manifest import Change
from tintray.routing.pools import routing_of
from tintray.routing.statistics import LEAST
from tintray.storage.catalog.catalog import Catalog


def add_router(
    merge: str,
    *,
    store: str | None = None,
    catalog: str | None = None,
    on_event: OnEvent | None = None,
) -> MergeSummary:
    """Publish a child of a merge that can tell which task an example is of; all else is the same.

    Raises InputError if a task's examples cannot be described; DataError if a pool is gone or is
    no longer the same. Nothing is published then.
    """
    store, catalog = chosen(store, catalog)
    parent = open_parent(merge, store=store, catalog=catalog)
    made = described(parent, on_event or ignore)
    files: Files = {**blobs_of(parent.manifest), **made}
    change = Change(operation="add-router", tasks=list(parent.merge.tasks))
    fields = {"created": publication_time(), "parent": str(parent.ref), "change": change}
    manifest = parent.manifest.unpublished(**fields)
    with as_input_error(), Catalog.open(catalog) as opened:
        make_known(parent, opened)
        head = max(opened.merges.find(parent.ref.name).version, parent.ref.version)
        name = parent.ref.name
        content = (files, manifest, parent.coefficients)
        published = write_merge(parent.store, opened, name, *content, head=head)
    return summary(published, f"{parent.store.url}/merges/{published.ref}")


def rehearse(
    merge: str,
    *,
    store: str | None = None,
    catalog: str | None = None,
    on_event: OnEvent | None = None,
) -> tuple[str, int]:
    """The version that would get a child with a router, and the bytes that it would add.

    Raises as ``add_router`` does; nothing is published.
    """
    store, catalog = chosen(store, catalog)
    parent = open_parent(merge, store=store, catalog=catalog)
    return str(parent.ref), sum(map(len, described(parent, on_event or ignore).values()))


def described(parent: Parent, told: OnEvent) -> dict[str, bytes]:
    """By file, the statistics of each task's pool by which a router finds it.

    They are computed in this process: on a GPU, if the merge's job had some and there is one.
    """
    made: dict[str, bytes] = {}
    device = device_here(parent.spec)
    for task in parent.manifest.tasks:
        source, pool = read_pool(parent.merge, task, task.pool)
        check_same(task.name, source, pool, task.pool)
        found = routing_of(pool, device)
        if found is None:
            raise InputError(
                f"the examples of '{task.name}' cannot be told from others: expected images or "
                f"tokens, {LEAST} examples at least, found {len(pool):,} examples of "
                f"{', '.join(pool.inputs)}"
            )
        made[routing_file(task.name)] = tensors_as_bytes(found)
        told(Notice(f"{task.name}: described by {len(pool):,} examples of its pool"))
    return made
