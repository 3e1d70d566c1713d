"""What one operation records, all do: fits, methods, surgery, additions, refreshes, removals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.growing import GrowingStore
from tests.tiny_zoo import TinyZoo
from tintray.errors import CancelledError
from tintray.jobs import api
from tintray.jobs.events import Evaluated, PhaseStarted, Published, RoundDone, TaskPrepared
from tintray.jobs.results import MergeSummary
from tintray.storage.catalog.catalog import Catalog

PHASES = ["planning", "preparing", "fitting", "evaluating", "publishing"]
BOTH = ("two", "three")
OF_A_TASK = {"self-labels", "task-vector", "expert-outputs", "self-features"}
SECTIONS: dict[str, Any] = {"fit": {"rounds": 2}, "objective": {"feature_weight": 1.0}}


@dataclass(frozen=True)
class Operation:
    """How it is run, which tasks of its merge are new, and which old ones it does not measure."""

    run: Callable[[GrowingStore], MergeSummary]
    new: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()


def merged(**merge: Any) -> Operation:
    return Operation(lambda store: store.run(*BOTH, merge=merge, **SECTIONS), BOTH)


def added(mode: str, unmeasured: tuple[str, ...] = ()) -> Operation:
    return Operation(lambda s: s.add("five", merge="tiny/v1", mode=mode), ("five",), unmeasured)


OPERATIONS = {
    "fit": merged(),
    "method": merged(method="ties"),
    "own backbones": merged(method="emr"),
    "surgery": merged(method="surgery"),
    "tint": added("tint", BOTH),
    "coefficients": added("coefficients"),
    "joint": added("joint"),
    "refresh": Operation(lambda store: store.refresh("three", "tiny/v1"), ("three",), ("two",)),
    "removal": Operation(lambda store: store.remove("two", merge="tiny/v1")),
    "exact removal": Operation(lambda store: store.remove("five", merge="tiny/v2"), (), BOTH),
}


@pytest.fixture(scope="module")
def begun(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> GrowingStore:
    """``tiny/v1`` with two tasks, and ``tiny/v2`` with one more that has a tint alone."""
    folder = tmp_path_factory.mktemp("begun")
    store = GrowingStore(tiny.copy(folder / "zoo"), folder / "store")
    store.run(*BOTH, **SECTIONS)
    store.add("five")
    return store


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_what_one_operation_records_all_do(
    begun: GrowingStore, tmp_path: Path, operation: Operation
) -> None:
    store = begun.copy(tmp_path / "store")
    summary = operation.run(store)
    manifest = store.manifest(summary)
    tasks = {task.name: task for task in manifest.tasks}
    # what is told
    events = store.events
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == PHASES
    assert {event.task for event in events if isinstance(event, TaskPrepared)} == {*operation.new}
    told = {event.task for event in events if isinstance(event, Evaluated)}
    assert told == tasks.keys() - {*operation.unmeasured}
    assert events[-1] == Published(summary.url)
    # what is published
    assert set(manifest.seconds) == set(PHASES[:-1])
    assert manifest.peak_memory_mib > 0 and set(manifest.correction_from) <= {*BOTH}
    assert all(task.expert.base_similarity > 0.5 for task in manifest.tasks)
    measured = api.evaluate(summary.url, store=store.place["store"])
    for told, again in zip(summary.tasks, measured.tasks, strict=True):
        assert told.merged == pytest.approx(again.merged)
        one, other = (of.calibration["merged"]["brier"] for of in (told, again))
        assert one == pytest.approx(other, abs=1e-6)
    # what the catalog knows
    with Catalog.open(store.place["catalog"], create=False) as catalog:
        states = [event.to_state for event in catalog.jobs.events(summary.job_id)]
        assert states == ["queued", *PHASES, "succeeded"]
        rows = catalog.inputs.tasks(summary.job_id)
        inputs = {row.name: (row.kind, row.expert_sha256, row.pool_sha256) for row in rows}
        assert inputs == {n: (t.kind, t.expert.sha256, t.pool.sha256) for n, t in tasks.items()}
        used = catalog.artifacts.all(job_id=summary.job_id)
        assert "base" in {artifact.kind for artifact in used}
        of_tasks = {(a.meta["task"], a.kind) for a in used if a.kind in OF_A_TASK}
        new = {(name, kind) for name in operation.new for kind in OF_A_TASK}
        old = {(name, "self-features") for name in tasks.keys() - {*operation.new}}
        assert new | old <= of_tasks
        assert catalog.leases.current(summary.job_id).owner is None
    # what is kept, once it is all that is left
    store.collect(*store.manifests().keys() - {manifest.ref})
    assert {artifact.sha256 for artifact in used} <= store.blobs()


@pytest.mark.parametrize("mode", ["coefficients", "joint"])
def test_a_stop_ends_growing_at_the_end_of_a_round(
    begun: GrowingStore, tmp_path: Path, mode: str
) -> None:
    store = begun.copy(tmp_path / "store")

    def stop(event: object) -> None:
        if isinstance(event, RoundDone):
            with Catalog.open(store.place["catalog"]) as catalog:
                (job,) = [job for job in catalog.jobs.all() if not job.state.terminal]
                catalog.queue.request_stop(job.id, "cancelled on request")

    long = (*store.overrides, "growth.coefficient_rounds=1000000")
    with pytest.raises(CancelledError):
        store.add("four", merge="tiny/v1", mode=mode, overrides=long, on_event=stop)
    assert len(store.manifests()) == 2
