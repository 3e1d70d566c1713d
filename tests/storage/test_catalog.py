"""The contract of the catalog, the same for every database."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from tintray.errors import (
    LeaseHeldError,
    LeaseLostError,
    NotFoundError,
    SpecError,
    StateConflictError,
    StorageError,
)
from tintray.storage.artifacts.blobs import BlobRef
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.inputs import KnownModel, KnownPool, KnownTask
from tintray.storage.catalog.merges import LayerSummary
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Base, Merge, Model, Pool

QUEUED, PLANNING, FITTING = JobState.QUEUED, JobState.PLANNING, JobState.FITTING
SHA = "a" * 64


@pytest.fixture
def job_id(catalog: Catalog) -> str:
    return catalog.jobs.create("ten", {"name": "ten"}, "file:///store")


def test_a_job_is_kept_as_it_was_submitted_and_every_change_with_its_reason(
    catalog: Catalog,
) -> None:
    spec = {"name": "ten", "fit": {"rounds": 3, "scale": 0.3}, "tasks": ["é", None, True]}
    job_id = catalog.jobs.create("ten", spec, "s3://bucket/prefix")
    (job,) = catalog.jobs.all()
    assert job.id == job_id and job_id.startswith("ten-")
    found = (job.name, job.state, job.spec, job.store_url)
    assert found == ("ten", QUEUED, spec, "s3://bucket/prefix")
    assert abs(datetime.now(UTC) - job.created_at) < timedelta(minutes=1)
    catalog.jobs.transition(job_id, QUEUED, PLANNING, "picked up")
    with pytest.raises(StateConflictError, match=f"job {job_id} is planning, not queued"):
        catalog.jobs.transition(job_id, QUEUED, FITTING, "late")
    catalog.jobs.transition(job_id, PLANNING, JobState.FAILED, "no memory")
    events = catalog.jobs.events(job_id)
    assert [(event.from_state, event.to_state, event.reason) for event in events] == [
        (None, QUEUED, "submitted"),
        (QUEUED, PLANNING, "picked up"),
        (PLANNING, JobState.FAILED, "no memory"),
    ]
    assert events[0].at <= events[1].at <= events[2].at
    job = catalog.jobs.get(job_id)
    assert (job.reason, job.state.terminal) == ("no memory", True)
    for use in (
        lambda: catalog.jobs.get(job_id[:-1]),
        lambda: catalog.jobs.transition(job_id[:-1], QUEUED, PLANNING, "x"),
    ):
        with pytest.raises(NotFoundError, match=rf"no job .* .did you mean '{job_id}'"):
            use()
    with pytest.raises(NotFoundError):
        catalog.leases.acquire("nothing", "me", 10)
    for name in ("", "a/b", "..", "latest"):
        with pytest.raises(SpecError, match="job name"):
            catalog.jobs.create(name, {}, "file:///store")


def test_a_catalog_that_forgot_a_change_is_told_the_next_one_by_the_jobs_owner(
    catalog: Catalog, job_id: str
) -> None:
    """As one does that fell back to a standby; nobody else may, nor change a job that is over."""
    token = catalog.leases.acquire(job_id, "ours", 60)
    catalog.jobs.transition(job_id, QUEUED, PLANNING, "begins", token=token)
    with pytest.raises(StateConflictError, match="is planning, not preparing"):
        catalog.jobs.transition(job_id, JobState.PREPARING, FITTING, "on")
    catalog.jobs.transition(job_id, JobState.PREPARING, FITTING, "on", token=token)
    event = catalog.jobs.events(job_id)[-1]
    assert (event.from_state, event.to_state) == (PLANNING, FITTING)
    catalog.jobs.transition(job_id, FITTING, JobState.CANCELLED, "enough")
    with pytest.raises(StateConflictError, match="is cancelled, not fitting"):
        catalog.jobs.transition(job_id, FITTING, JobState.EVALUATING, "on", token=token)


def test_one_owner_at_a_time_and_tokens_grow(catalog: Catalog, job_id: str) -> None:
    first = catalog.leases.acquire(job_id, "one", 60)
    with pytest.raises(LeaseHeldError, match=f"job {job_id} is being worked on by one"):
        catalog.leases.acquire(job_id, "two", 60)
    catalog.leases.release(job_id, first)
    with pytest.raises(LeaseLostError, match="released"):
        catalog.leases.renew(job_id, first, 60)
    second = catalog.leases.acquire(job_id, "two", 60)
    again = catalog.leases.acquire(job_id, "two", 60)
    assert first < second < again
    lease = catalog.leases.current(job_id)
    assert (lease.owner, lease.token) == ("two", again)
    assert lease.expires_at is not None
    assert timedelta(0) < lease.expires_at - datetime.now(UTC) < timedelta(seconds=61)


def test_a_lease_that_ran_out_goes_to_another_and_fences_off_the_first(
    catalog: Catalog, job_id: str
) -> None:
    old = catalog.leases.acquire(job_id, "slow", 0.0)
    catalog.jobs.transition(job_id, QUEUED, PLANNING, "still ours", token=old)
    new = catalog.leases.acquire(job_id, "fresh", 60)
    for late in (
        lambda: catalog.leases.renew(job_id, old, 60),
        lambda: catalog.jobs.transition(job_id, PLANNING, FITTING, "late", token=old),
        lambda: catalog.jobs.record_rounds(job_id, {1: {"loss": 1.0}}, token=old),
        lambda: catalog.merges.record("ten", 1, "file:///m", job_id, token=old),
    ):
        with pytest.raises(LeaseLostError, match=f"we hold token {old}, the catalog has {new}"):
            late()
    catalog.leases.release(job_id, old)
    assert catalog.leases.current(job_id).owner == "fresh"
    catalog.leases.renew(job_id, new, 60)
    catalog.jobs.transition(job_id, PLANNING, FITTING, "on", token=new)
    assert (catalog.jobs.get(job_id).state, catalog.jobs.rounds(job_id)) == (FITTING, [])
    assert catalog.merges.all() == []


def test_of_many_who_want_a_lease_one_gets_it(catalog: Catalog, job_id: str) -> None:
    barrier = threading.Barrier(6)

    def acquire(number: int) -> int | None:
        barrier.wait()
        try:
            return catalog.leases.acquire(job_id, f"owner {number}", 60)
        except LeaseHeldError:
            return None

    with ThreadPoolExecutor(6) as pool:
        assert sorted(filter(None, pool.map(acquire, range(6)))) == [1]


def test_rounds_are_kept_in_order_and_a_repeated_one_replaced(
    catalog: Catalog, job_id: str
) -> None:
    infinite = {"loss": float("nan"), "agreement": {"a": float("inf")}}
    first = {number: {"loss": float(number)} for number in (2, 0, 1)}
    for batch in (first, {2: {"loss": 9.0}, 3: {"loss": 3.0}}, {4: infinite}, {}):
        catalog.jobs.record_rounds(job_id, batch)
    found = [(row.round, row.metrics["loss"]) for row in catalog.jobs.rounds(job_id)]
    assert found == [(0, 0.0), (1, 1.0), (2, 9.0), (3, 3.0), (4, None)]


def test_models_pools_and_tasks_are_known_by_their_hashes(catalog: Catalog, job_id: str) -> None:
    base = KnownModel(SHA, "base", "./base", 10**10)
    pools = [KnownPool("c" * 64, "mnist.npz", 60_000, "train")]
    for kind, source in (("regression", "./mnist"), ("classification", "./elsewhere")):
        models = [base, KnownModel("b" * 64, "expert", source, 7, SHA)]
        tasks = [KnownTask("mnist", kind, "b" * 64, "c" * 64)]
        catalog.inputs.record(job_id, models, pools, tasks)
    with catalog.database.read() as session:
        found = session.scalars(sa.select(Model).order_by(Model.kind)).all()
        found_pools = session.scalars(sa.select(Pool)).all()
    told = [(m.kind, m.source, m.parameters) for m in found]
    assert told == [("base", "./base", 10**10), ("expert", "./mnist", 7)]
    assert [(pool.examples, pool.split) for pool in found_pools] == [(60_000, "train")]
    (task,) = catalog.inputs.tasks(job_id)
    assert (task.name, task.kind, task.expert_sha256) == ("mnist", "classification", "b" * 64)
    with pytest.raises(StorageError, match="cannot be used"):
        catalog.inputs.record(job_id, [], [], [KnownTask("x", "classification", "d" * 64)])


def test_a_merge_has_lineage_files_and_coefficients(catalog: Catalog, job_id: str) -> None:
    layers = [LayerSummary("a", 0.3, 0.1, 0.2, 0.4), LayerSummary("b", 0.5, 0.0, 0.5, 0.5)]
    files = {"backbone.safetensors": BlobRef(SHA, 5 * 10**9), "again": BlobRef(SHA, 5 * 10**9)}
    metrics = {"normalised_accuracy": 0.9}
    catalog.merges.record("ten", 1, "file:///m/v1", job_id, metrics=metrics)
    grown = {"parent": "ten/v1", "added": ["kmnist"], "files": files, "coefficients": layers}
    catalog.merges.record("ten", 2, "file:///m/v2", **grown)
    first, second = catalog.merges.all()
    assert (first.ref, first.metrics, first.job_id) == ("ten/v1", metrics, job_id)
    parent = catalog.merges.parent(second.ref)
    assert (parent and parent.ref, second.added) == ("ten/v1", ["kmnist"])
    assert catalog.merges.parent(first.ref) is None
    assert [catalog.merges.children(m.ref) for m in (first, second)] == [["ten/v2"], []]
    assert catalog.merges.children("ten/v3") == []
    assert catalog.merges.files(second) == files
    found = catalog.merges.coefficients(second)
    assert [LayerSummary(c.layer, c.mean, c.spread, c.minimum, c.maximum) for c in found] == layers


def test_entering_a_merge_again_changes_nothing_and_another_is_refused(
    catalog: Catalog, job_id: str
) -> None:
    merge = ("ten", 1, "file:///m", job_id, None)
    for number in (1, 2):
        catalog.merges.record(*merge, SHA, {"x": number})
    with pytest.raises(StorageError, match="ten/v1 is already in the catalog"):
        catalog.merges.record(*merge, "b" * 64)
    assert [merge.metrics for merge in catalog.merges.all()] == [{"x": 1}]


def test_a_merge_is_found_by_name_version_and_age(catalog: Catalog) -> None:
    for name, version in (("ten", 1), ("ten", 10), ("ten", 2), ("two", 1)):
        catalog.merges.record(name, version, f"file:///{name}/{version}")
    named = {"ten": "ten/v10", "ten/v2": "ten/v2", "ten/latest": "ten/v10", "latest": "two/v1"}
    assert {reference: catalog.merges.find(reference).ref for reference in named} == named
    loaded: list[Merge] = []
    listen = (Merge, "load", lambda row, _: loaded.append(row))
    sa.event.listen(*listen)  # of many merges, those that are not meant are never read
    try:
        for wrong, near in (("tenn", "ten"), ("tenn/v2", "ten"), ("ten/v11", "ten/v1")):
            with pytest.raises(
                NotFoundError, match=rf"no merge '{wrong}' .* .did you mean '{near}"
            ):
                catalog.merges.find(wrong)
    finally:
        sa.event.remove(*listen)
    assert not loaded
    for wrong in ("ten/v3", "ten/2", "ten/v1/x", "ten/vx", "/", ""):
        with pytest.raises(NotFoundError):
            catalog.merges.find(wrong)


def test_reserved_versions_are_never_given_twice(catalog: Catalog, job_id: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        given = list(pool.map(lambda _: catalog.merges.reserve("ten"), range(12)))
    assert sorted(given) == list(range(1, 13))
    mine = catalog.merges.reserve("ten", job_id, at_least=20)
    assert mine == catalog.merges.reserve("ten", job_id, at_least=21) == 20
    assert catalog.merges.all() == []
    catalog.merges.record("ten", mine, "file:///m", job_id)
    assert catalog.merges.reserve("ten", job_id) == 21
    with pytest.raises(StorageError, match="ten/v3 is already"):
        catalog.merges.record("ten", 3, "file:///m", job_id)


def test_artifacts_are_needed_by_merges_running_jobs_and_pins(
    catalog: Catalog, job_id: str
) -> None:
    hashes = {letter: letter * 64 for letter in "abcd"}
    catalog.merges.record("ten", 1, "file:///m", files={"x": BlobRef(hashes["a"], 1)})
    catalog.artifacts.record([KnownArtifact(BlobRef(hashes["b"], 2), "labels")], job_id=job_id)
    for _ in range(2):
        catalog.artifacts.record([KnownArtifact(BlobRef(hashes["c"], 3), "labels")])
    catalog.artifacts.record([KnownArtifact(BlobRef(hashes["d"], 4), "checkpoint")])
    catalog.artifacts.pin(hashes["d"])
    assert [(a.sha256[0], a.size) for a in catalog.artifacts.all("labels")] == [("b", 2), ("c", 3)]
    assert catalog.artifacts.needed() == {hashes["a"], hashes["b"], hashes["d"]}
    catalog.jobs.transition(job_id, QUEUED, JobState.CANCELLED, "not wanted")
    catalog.artifacts.pin(hashes["d"], pinned=False)
    assert catalog.artifacts.needed() == {hashes["a"]}
    with pytest.raises(NotFoundError, match="no artifact"):
        catalog.artifacts.pin("e" * 64)


def test_passwords_do_not_reach_a_row(catalog: Catalog) -> None:
    secret = "postgresql+psycopg://me:hunter2@host/db"
    job_id = catalog.jobs.create("ten", {"catalog": secret, "deep": [{"x": secret}]}, secret)
    catalog.jobs.transition(job_id, QUEUED, PLANNING, f"could not reach {secret}")
    catalog.jobs.record_rounds(job_id, {1: {"note": secret}})
    catalog.merges.record("ten", 1, secret, job_id, metrics={"from": secret})
    base, pool = KnownModel(SHA, "base", secret, 1), KnownPool(SHA, secret, 1)
    catalog.inputs.record(job_id, [base], [pool], [KnownTask("a", "regression")])
    catalog.artifacts.record([KnownArtifact(BlobRef(SHA, 1), "labels", {"x": secret})])
    catalog.queue.request_stop(job_id, f"asked by {secret}")
    with catalog.database.read() as session:
        rows = [session.execute(table.select()).all() for table in Base.metadata.sorted_tables]
    assert len([found for found in rows if found]) == 9
    assert "hunter2" not in repr(rows)
