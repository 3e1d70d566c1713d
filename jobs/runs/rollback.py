"""The way back: an earlier version of a merge, published again as its newest."""

from __future__ import annotations

from tintray.errors import InputError, NotFoundError
from tintray.jobs.config.input_errors import as_input_error
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import blobs_of
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs.parent import Parent, line, make_known, open_parent
from tintray.jobs.runs.publication import publication_time, write_merge
from tintray.jobs.runs.summaries import summary
from tintray.published.manifest import Change
from tintray.storage.catalog.catalog import Catalog


def rollback(
    merge: str, to: str | None = None, *, store: str | None = None, catalog: str | None = None
) -> MergeSummary:
    """Publish an earlier version of a merge again, as its newest.

    Nothing is undone: the versions in between stay, and the new one has the last as its parent.

    ``to`` is the version to go back to, ``name/v1`` or ``v1``; left out, the parent of the newest.

    Raises InputError if the merge has no parent, or ``to`` is not one of its ancestors.
    """
    store, catalog = chosen(store, catalog)
    now = open_parent(merge, store=store, catalog=catalog)
    before = _ancestor(now, to)
    with as_input_error(), Catalog.open(catalog) as opened:
        make_known(now, opened)
        head = max(opened.merges.find(now.ref.name).version, now.ref.version)
        change = Change(operation="rollback", tasks=[], to=str(before.ref))
        manifest = before.manifest.unpublished(
            created=publication_time(), parent=str(now.ref), change=change
        )
        content = (blobs_of(before.manifest), manifest, before.coefficients)
        published = write_merge(now.store, opened, now.ref.name, *content, head=head)
    return summary(published, f"{now.store.url}/merges/{published.ref}")


def way_back(
    merge: str, to: str | None = None, *, store: str | None = None, catalog: str | None = None
) -> tuple[str, str]:
    """The merge that ``rollback`` would start from, and the version that it would publish again."""
    store, catalog = chosen(store, catalog)
    now = open_parent(merge, store=store, catalog=catalog)
    return str(now.ref), str(_ancestor(now, to).ref)


def _ancestor(now: Parent, to: str | None) -> Parent:
    ancestors = dict(line(now))
    if not ancestors:
        raise InputError(f"{now.ref} grew from no merge; there is nothing to roll back to")
    there = [ref for ref, ancestor in ancestors.items() if ancestor is not None]
    said = ", ".join(ref if ref in there else f"{ref} (removed)" for ref in ancestors)
    wanted = next(iter(ancestors)) if to is None else to if "/" in to else f"{now.ref.name}/{to}"
    if wanted not in ancestors:
        raise NotFoundError(f"{now.ref} did not grow from {wanted}; it grew from {said}")
    ancestor = ancestors[wanted]
    if ancestor is None:
        ways = f"--to {there[0]} goes back to what is left" if there else "none of them is left"
        raise NotFoundError(
            f"{wanted}, which {now.ref} grew from, was removed; it grew from {said}; {ways}"
        )
    return ancestor
