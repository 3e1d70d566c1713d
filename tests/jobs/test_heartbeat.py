"""The lease of a running job: kept while it runs, and without it nothing can be published."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.tiny_zoo import TinyZoo
from tintray.errors import LeaseHeldError, LeaseLostError
from tintray.jobs import api
from tintray.jobs.events import PhaseStarted, RoundDone
from tintray.jobs.runs.heartbeat import Heartbeat
from tintray.storage.artifacts.publish import MergeRef, list_merges, manifest_digest
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db") as opened:
        yield opened


@pytest.fixture
def job(catalog: Catalog) -> str:
    return catalog.jobs.create("ten", {}, "file:///store")


def test_a_lease_outlives_its_ttl_while_the_heart_beats(catalog: Catalog, job: str) -> None:
    with Heartbeat(catalog, job, ttl=2) as lease:
        first = catalog.leases.current(job).expires_at
        assert first is not None
        while (catalog.leases.current(job).expires_at or first) < first + timedelta(seconds=2):
            lease.check()
            time.sleep(0.1)
        with pytest.raises(LeaseHeldError):
            catalog.leases.acquire(job, "another", 60)
        catalog.jobs.transition(job, JobState.QUEUED, JobState.PLANNING, "ours", token=lease.token)
    assert catalog.leases.acquire(job, "another", 60) == lease.token + 1


def test_a_lease_that_was_taken_is_noticed(catalog: Catalog, job: str) -> None:
    with Heartbeat(catalog, job, ttl=0.2) as lease:
        _take(catalog, job, lease.token)
        with pytest.raises(LeaseLostError, match="another process continues"):
            for _ in range(3000):
                lease.check()
                time.sleep(0.02)
        with pytest.raises(LeaseLostError):
            lease.confirm()
    assert catalog.leases.current(job).owner == "another"  # it is not given back for somebody else


def _take(catalog: Catalog, job: str, token: int) -> None:
    """What another process does once a lease has run out."""
    catalog.leases.release(job, token)
    catalog.leases.acquire(job, "another", 60)


@pytest.mark.parametrize("moment", ["fitting", "publishing"])
def test_who_lost_the_lease_can_never_publish(tiny: TinyZoo, tmp_path: Path, moment: str) -> None:
    spec = tiny.spec(tmp_path / "store")
    taken: list[str] = []

    def watch(event: object) -> None:
        has_come = isinstance(event, RoundDone) and moment == "fitting"
        has_come |= isinstance(event, PhaseStarted) and event.phase == moment == "publishing"
        if has_come and not taken:
            with Catalog.open(spec.catalog) as catalog:
                taken.append(catalog.jobs.all()[0].id)
                _take(catalog, taken[0], catalog.leases.current(taken[0]).token)

    with pytest.raises(LeaseLostError, match="no longer ours"):
        api.run(spec, on_event=watch)
    assert list_merges(open_store(spec.store)) == []
    with Catalog.open(spec.catalog) as catalog:
        assert catalog.merges.all() == []
        # Its state is the new owner's to change: the old one did not call it failed.
        assert catalog.jobs.get(taken[0]).state == moment
        assert catalog.leases.current(taken[0]).owner == "another"


@pytest.mark.parametrize(("method", "own"), [("tint", set()), ("fisher", {"fisher"})])
def test_the_catalog_knows_every_artifact_of_a_job(
    tiny: TinyZoo, tmp_path: Path, method: str, own: set[str]
) -> None:
    spec = tiny.spec(tmp_path / "store", merge={"method": method})
    summary = api.run(spec)
    with Catalog.open(spec.catalog, create=False) as catalog:
        known = {item.sha256: item.kind for item in catalog.artifacts.all()}
        merge = catalog.merges.find("tiny")
        needed = catalog.artifacts.needed()
        assert catalog.leases.current(summary.job_id).owner is None
    store = open_store(spec.store)
    blobs = {entry.key[-64:] for entry in store.list("blobs/")}
    assert known.keys() == blobs == needed
    assert set(known.values()) == own | {
        "base", "self-labels", "expert-outputs", "task-vector",
        "backbone", "coefficients", "tint", "config", "routing",
        "reference",
    }  # fmt: skip
    assert merge.manifest_sha256 == manifest_digest(store, MergeRef("tiny", 1))
