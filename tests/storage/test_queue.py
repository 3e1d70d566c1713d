"""The queue of a cluster: its order, its limit, and that nothing in it is lost or given twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tintray.errors import LeaseHeldError, LeaseLostError, NotFoundError, StateConflictError
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.queue import ATTEMPTS, HANDOVER, Claim, QueuePosition
from tintray.storage.catalog.states import JobState
from tintray.storage.catalog.tables import Job

HEAD, OTHER = "http://head:8265", "http://other:8265"


def submit(catalog: Catalog, name: str, priority: int = 0, cluster: str = HEAD) -> str:
    catalog.queue.set_limit(cluster, None)
    return catalog.jobs.create(name, {}, "file:///store", cluster=cluster, priority=priority)


def claimed(catalog: Catalog) -> Claim:
    claim = catalog.queue.claim(HEAD)
    assert claim is not None
    return claim


def begin(catalog: Catalog, claim: Claim) -> int:
    """What a driver does first."""
    token = catalog.leases.acquire(claim.job_id, f"driver of {claim.job_id}", 60)
    catalog.jobs.transition(claim.job_id, JobState.QUEUED, JobState.PLANNING, "begins", token=token)
    return token


def end(catalog: Catalog, claim: Claim, token: int) -> None:
    catalog.jobs.transition(
        claim.job_id, JobState.PLANNING, JobState.SUCCEEDED, "done", token=token
    )
    catalog.leases.release(claim.job_id, token)


def pass_time(catalog: Catalog, job_id: str, seconds: float) -> None:
    """As if a job had been handed over, and its lease renewed, so much earlier."""
    with catalog.database.write() as session:
        job = session.get_one(Job, job_id)
        assert job.handed_at is not None
        job.handed_at -= timedelta(seconds=seconds)
        session.execute(
            sa.text("UPDATE leases SET expires_at = '2000-01-01 00:00:00' WHERE owner IS NOT NULL")
        )


def test_the_highest_priority_goes_first_then_the_oldest(catalog: Catalog) -> None:
    names = [submit(catalog, f"job-{n}", priority) for n, priority in enumerate([0, 5, 0, -1, 5])]
    order = []
    while (claim := catalog.queue.claim(HEAD)) is not None:
        assert catalog.queue.claim(HEAD) is None  # one at a time
        order.append(claim.job_id)
        end(catalog, claim, begin(catalog, claim))
    assert order == [names[1], names[4], names[0], names[2], names[3]]


def test_a_cluster_runs_as_many_as_it_may_and_others_do_not_count(catalog: Catalog) -> None:
    jobs = [submit(catalog, f"job-{n}") for n in range(4)]
    submit(catalog, "elsewhere", cluster=OTHER)
    catalog.queue.set_limit(HEAD, 2)
    catalog.queue.set_limit(HEAD, None)  # to know it again changes nothing
    first, second = claimed(catalog), claimed(catalog)
    assert catalog.queue.claim(HEAD) is None
    assert catalog.queue.claim(OTHER) is not None
    token = begin(catalog, first)
    assert catalog.queue.claim(HEAD) is None
    assert catalog.queue.position(catalog.queue.find(jobs[3])) == QueuePosition(2, 2, 1)
    end(catalog, first, token)
    third = claimed(catalog)
    assert [first.job_id, second.job_id, third.job_id] == jobs[:3]
    assert catalog.queue.clusters() == {HEAD: QueuePosition(2, 2, 1), OTHER: QueuePosition(1, 1, 0)}


def test_however_many_claim_at_once_each_job_is_claimed_once(catalog: Catalog) -> None:
    jobs = {submit(catalog, f"job-{n}") for n in range(12)}
    catalog.queue.set_limit(HEAD, 7)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: catalog.queue.claim(HEAD), range(18)))
    given = [claim.job_id for claim in found if claim is not None]
    assert len(given) == len(set(given)) == 7
    assert set(given) <= jobs


def test_a_job_that_could_not_be_handed_over_waits_again(catalog: Catalog) -> None:
    submit(catalog, "ten")
    claim = claimed(catalog)
    catalog.queue.release(claim)
    again = catalog.queue.claim(HEAD)
    assert again == Claim(claim.job_id, claim.attempt + 1)  # Ray gives no name twice
    catalog.queue.release(claim)  # that was not its claim any more
    assert catalog.queue.claim(HEAD) is None
    for _ in range(2 * ATTEMPTS):  # a cluster that is away is no fault of the job
        catalog.queue.release(again)
        again = claimed(catalog)


def test_a_job_that_shows_no_sign_of_life_is_handed_over_again_but_not_for_ever(
    catalog: Catalog,
) -> None:
    job_id = submit(catalog, "ten")
    for attempt in range(1, ATTEMPTS + 1):
        claim = catalog.queue.claim(HEAD)
        assert claim == Claim(job_id, attempt)
        catalog.queue.mark_submitted(claim)
        assert catalog.queue.claim(HEAD) is None
        pass_time(catalog, job_id, HANDOVER + 1)
    assert catalog.queue.claim(HEAD) is None
    found = catalog.queue.find(job_id)
    assert found.state is JobState.FAILED
    assert "without a sign of life; `tintray logs" in found.reason


def test_a_job_is_lost_when_its_lease_runs_out_and_then_holds_no_place(catalog: Catalog) -> None:
    job_id, after = submit(catalog, "ten"), submit(catalog, "next")
    claim = claimed(catalog)
    token = begin(catalog, claim)
    assert not catalog.queue.find(job_id).lost
    pass_time(catalog, job_id, 1)
    assert catalog.queue.find(job_id).lost
    assert catalog.queue.claim(HEAD) == Claim(after, 1)
    catalog.queue.requeue(job_id, "resumed", cluster=HEAD)
    found = catalog.queue.find(job_id)
    assert (found.state, found.lost, found.reason) == (JobState.QUEUED, False, "resumed")
    with pytest.raises(StateConflictError, match="is queued"):
        catalog.queue.requeue(job_id, "resumed again", cluster=HEAD)
    # The process that was thought dead wakes up: nothing that it tries is accepted.
    with pytest.raises(LeaseLostError):
        catalog.leases.renew(job_id, token, 60)
    with pytest.raises(LeaseLostError):
        catalog.jobs.transition(job_id, JobState.QUEUED, JobState.FITTING, "awake", token=token)
    assert not catalog.queue.mark_dead(claim, "its process is dead")  # it was another attempt


def test_a_job_that_runs_or_has_succeeded_is_not_queued_again(catalog: Catalog) -> None:
    job_id = submit(catalog, "ten")
    claim = claimed(catalog)
    token = begin(catalog, claim)
    with pytest.raises(LeaseHeldError, match=f"`tintray watch {job_id}`"):
        catalog.queue.requeue(job_id, "resumed", cluster=HEAD)
    end(catalog, claim, token)
    with pytest.raises(StateConflictError, match=r"is succeeded \(done\)"):
        catalog.queue.requeue(job_id, "resumed", cluster=HEAD)
    with pytest.raises(NotFoundError, match="no job"):
        catalog.queue.requeue("nothing", "resumed", cluster=HEAD)


def test_a_driver_that_was_seen_dead_is_no_reason_to_wait(catalog: Catalog) -> None:
    job_id = submit(catalog, "ten")
    claim = claimed(catalog)
    assert not catalog.queue.fail_unstarted(Claim(job_id, 99), "another attempt")
    token = begin(catalog, claim)
    assert not catalog.queue.fail_unstarted(claim, "it has begun")
    assert catalog.queue.mark_dead(claim, "ended by SIGKILL")
    with pytest.raises(LeaseLostError):
        catalog.leases.renew(job_id, token, 60)
    assert not catalog.queue.mark_dead(claim, "twice")
    found = catalog.queue.find(job_id)
    said = "ended by SIGKILL: the job goes on with a new driver (1 of 10)"
    assert (found.state, found.reason) == (JobState.QUEUED, said)
    assert claimed(catalog).attempt > claim.attempt


def test_a_driver_is_started_again_as_often_as_its_job_allows(catalog: Catalog) -> None:
    catalog.queue.set_limit(HEAD, None)
    spec = {"cluster": {"restarts": 2}}
    job_id = catalog.jobs.create("ten", spec, "file:///store", cluster=HEAD)
    for _ in range(2):
        claim = claimed(catalog)
        begin(catalog, claim)
        assert catalog.queue.lost(HEAD) == []
        assert not catalog.queue.restart_lost(claim), "somebody works on it"
        pass_time(catalog, job_id, 1)
        assert catalog.queue.lost(HEAD) == [claim]
        assert catalog.queue.restart_lost(claim)
        assert not catalog.queue.restart_lost(claim), "twice"
    begin(catalog, claimed(catalog))
    pass_time(catalog, job_id, 1)
    assert catalog.queue.lost(HEAD) == []
    assert catalog.queue.find(job_id).lost
    assert [event.reason[-8:] for event in catalog.jobs.recoveries(job_id)] == [
        "(1 of 2)",
        "(2 of 2)",
    ]
    catalog.queue.requeue(job_id, "resumed", cluster=HEAD)
    assert catalog.jobs.recoveries(job_id) == [], "whoever resumes it begins to count anew"


def test_a_lost_job_that_was_asked_to_stop_stops(catalog: Catalog) -> None:
    job_id = submit(catalog, "ten")
    claim = claimed(catalog)
    begin(catalog, claim)
    catalog.queue.request_stop(job_id, "by me")
    pass_time(catalog, job_id, 1)
    assert catalog.queue.restart_lost(claim)
    assert catalog.queue.find(job_id).state is JobState.CANCELLED


def test_a_driver_that_dies_as_it_begins_gives_its_place_back(catalog: Catalog) -> None:
    job_id = submit(catalog, "ten")
    claim = claimed(catalog)
    token = catalog.leases.acquire(job_id, "a driver that imports", 60)
    assert catalog.queue.claim(HEAD) is None
    pass_time(catalog, job_id, 1)
    assert claimed(catalog).attempt > claim.attempt
    assert catalog.queue.claim(HEAD) is None, "the next one has its time to begin"
    with pytest.raises(LeaseLostError):
        catalog.leases.renew(job_id, token, 60)


def test_a_stop_is_a_request_to_whoever_works_and_immediate_otherwise(catalog: Catalog) -> None:
    job_id, waiting = submit(catalog, "ten"), submit(catalog, "next")
    claim = claimed(catalog)
    begin(catalog, claim)
    assert catalog.queue.stop_requested(job_id) is None
    assert catalog.queue.request_stop(job_id, "by me") is JobState.PLANNING
    assert catalog.queue.stop_requested(job_id) == "by me"
    assert catalog.queue.request_stop(waiting, "by me") is JobState.CANCELLED
    with pytest.raises(StateConflictError, match="is cancelled"):
        catalog.queue.request_stop(waiting, "twice")
    catalog.queue.requeue(waiting, "resumed", cluster=HEAD)
    assert catalog.queue.stop_requested(waiting) is None


def test_a_key_is_given_to_one_job(catalog: Catalog) -> None:
    with ThreadPoolExecutor(4) as pool:

        def create(number: int) -> str | None:
            try:
                return catalog.jobs.create("ten", {"n": number}, "file:///s", key="nightly")
            except Exception as error:  # noqa: BLE001 - which one is what the test is about
                return type(error).__name__

        found = list(pool.map(create, range(4)))
    job = catalog.queue.by_key("nightly")
    assert job is not None
    assert found.count(job.id) == 1
    assert {name for name in found if name != job.id} <= {"StateConflictError", "StorageError"}
    assert [row.id for row in catalog.queue.listing(None)] == [job.id]


def test_lists_have_what_is_not_over_and_the_newest(catalog: Catalog) -> None:
    jobs = [catalog.jobs.create(f"job-{n}", {}, "file:///s", cluster=HEAD) for n in range(6)]
    for job_id in jobs[1:]:
        catalog.jobs.transition(job_id, JobState.QUEUED, JobState.CANCELLED, "enough")
    assert [row.id for row in catalog.queue.listing(2)] == [jobs[5], jobs[4], jobs[0]]
    assert len(catalog.queue.listing(None)) == 6
    assert [row.id for row in catalog.queue.listing(None, [JobState.QUEUED])] == [jobs[0]]
    assert [row.id for row in catalog.queue.listing(None, name="job-3")] == [jobs[3]]
    assert catalog.queue.by_prefix("job-3") == [jobs[3]]
    assert catalog.queue.by_prefix("job") == jobs[::-1]
    assert catalog.queue.by_prefix("job_") == []  # no pattern
