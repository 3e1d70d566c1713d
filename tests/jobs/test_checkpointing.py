"""A fit that was broken off goes on from its last checkpoint, and ends as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.tiny_zoo import TinyZoo
from tintray.errors import InputError, StorageError
from tintray.jobs import api
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.engine import fit_checkpoints as checkpointing
from tintray.jobs.events import CheckpointSaved, Notice, RoundDone
from tintray.jobs.runs.run import continue_job
from tintray.published.manifest import Manifest
from tintray.storage.artifacts.blobs import blob_key
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.collect import plan
from tintray.storage.catalog.states import JobState
from tintray.tinting import watching

ROUNDS = 9
FIT = {"rounds": ROUNDS, "groups": 2, "checkpoint_every": 2, "correction_lr": 1e-3, "held_back": 8}
SECTIONS: dict[str, Any] = {"tint": {"sites": "vit.layers.2"}, "fit": FIT}


class PowerCutError(Exception):
    """What no code catches: the process ends here."""


def break_off(spec: JobSpec, round_: int) -> str:
    """Run a job until a round; returns its id."""

    def on_event(event: object) -> None:
        if isinstance(event, RoundDone) and event.round == round_:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        api.run(spec, on_event=on_event)
    with Catalog.open(spec.catalog, create=False) as catalog:
        (job,) = catalog.jobs.all()
        return job.id


def resume(spec: JobSpec, job_id: str, events: list[Any] | None = None) -> Manifest:
    with Catalog.open(spec.catalog, create=False) as catalog:
        catalog.queue.requeue(job_id, "resumed", cluster=None)
        return continue_job(job_id, catalog, spec, [].append if events is None else events.append)


def published(manifest: Manifest) -> tuple[Any, ...]:
    """All of a merge that must not depend on how its job went."""
    tasks = [(t.name, t.selected_fraction, t.score, t.held_back) for t in manifest.tasks]
    return manifest.files, tasks, manifest.metrics


@pytest.fixture(autouse=True, scope="module")
def watched_often() -> Iterator[None]:
    """A fit of nine rounds looks at what is held back after its last four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "SHARE", 1.0)
        yield


@pytest.fixture(scope="module")
def undisturbed(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    summary = api.run(tiny.spec(tmp_path_factory.mktemp("whole"), **SECTIONS))
    return published(tintray.load(summary.url).manifest)


def checkpoint_blobs(spec: JobSpec) -> set[str]:
    """Keys of the checkpoints' blobs that lie in the store."""
    store = open_store(spec.store)
    with Catalog.open(spec.catalog, create=False) as catalog:
        known = [blob_key(item.sha256) for item in catalog.artifacts.all("checkpoint")]
    return {key for key in known if store.exists(key)}


def test_a_resumed_job_ends_as_one_that_was_never_broken_off(
    tiny: TinyZoo, tmp_path: Path, undisturbed: tuple[Any, ...]
) -> None:
    spec = tiny.spec(tmp_path, **SECTIONS)
    job_id = break_off(spec, 7)
    with Catalog.open(spec.catalog, create=False) as catalog:
        assert [found.round for found in catalog.checkpoints.of(job_id)] == [6, 4]
        # It is over as far as its state goes; what it could go on from is kept all the same.
        assert catalog.jobs.get(job_id).state is JobState.FAILED
        garbage = {item.key for item in plan(open_store(spec.store), catalog, age=-60).garbage}
    assert len(checkpoint_blobs(spec)) == 2 * (1 + 1 + 2)  # manifest, coordinator, two groups
    assert not checkpoint_blobs(spec) & garbage
    events: list[Any] = []
    manifest = resume(spec, job_id, events)
    assert [event.round for event in events if isinstance(event, RoundDone)] == [7, 8, 9]
    assert Notice("goes on after round 6 of 9") in events
    assert published(manifest) == undisturbed
    with Catalog.open(spec.catalog, create=False) as catalog:
        assert catalog.checkpoints.of(job_id) == []  # it needs none any more
        assert [row.round for row in catalog.jobs.rounds(job_id)] == list(range(1, ROUNDS + 1))
        garbage = {item.key for item in plan(open_store(spec.store), catalog, age=-60).garbage}
    assert checkpoint_blobs(spec) == set()
    assert garbage == set()


def test_updates_in_turn_are_resumed_too(tiny: TinyZoo, tmp_path: Path) -> None:
    sections = {"fit": {**FIT, "groups": None, "updates": "in_turn"}}
    whole = api.run(tiny.spec(tmp_path / "whole", **sections))
    spec = tiny.spec(tmp_path / "broken", **sections)
    manifest = resume(spec, break_off(spec, 3))
    assert published(manifest) == published(tintray.load(whole.url).manifest)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tiny: TinyZoo, tmp_path: Path, undisturbed: tuple[Any, ...]
) -> None:
    spec = tiny.spec(tmp_path, **SECTIONS)
    job_id = break_off(spec, 7)
    with Catalog.open(spec.catalog, create=False) as catalog:
        newest, before = catalog.checkpoints.of(job_id)
    open_store(spec.store).delete(blob_key(newest.parts[-1]))
    events: list[Any] = []
    assert published(resume(spec, job_id, events)) == undisturbed
    assert Notice(f"goes on after round {before.round} of 9") in events


def test_what_a_fit_cannot_go_on_from_is_refused_by_name(tiny: TinyZoo, tmp_path: Path) -> None:
    """One job, each refusal of it: only what changes no result may change."""
    zoo = tiny.copy(tmp_path / "zoo")
    spec = zoo.spec(tmp_path / "store", **SECTIONS)
    job_id = break_off(spec, 3)
    with pytest.raises(InputError, match="the job file is not what it was"):
        resume(spec.changed(fit={"batch_size": 7}), job_id)
    path = zoo.folder / "five" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 0x10]) + data[-1:])
    with pytest.raises(InputError, match=r"tasks\.five\.expert is not what it was .*tintray retry"):
        resume(spec, job_id)
    path.write_bytes(data)
    assert resume(spec.changed(fit={"checkpoint_every": 99}), job_id).version == 1


def test_without_a_checkpoint_that_can_be_read_it_says_how_to_start_over(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    spec = tiny.spec(tmp_path, **SECTIONS)
    job_id = break_off(spec, 3)
    for key in checkpoint_blobs(spec):
        open_store(spec.store).delete(key)
    with pytest.raises(StorageError, match=f"none can be used: .*`tintray retry {job_id}`"):
        resume(spec, job_id)


def test_checkpoints_go_by_time_where_the_job_does_not_say(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved(name: str) -> list[int]:
        events: list[Any] = []
        api.run(tiny.spec(tmp_path / name, tasks=("two",)), on_event=events.append)
        return [event.round for event in events if isinstance(event, CheckpointSaved)]

    assert saved("quick") == []
    monkeypatch.setattr(checkpointing, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpointing, "MOST", 1e9)
    assert saved("always") == [1, 2, 3]  # none after the last round: nothing is left to go on with
    monkeypatch.setattr(checkpointing, "MOST", 1e-9)
    assert saved("too slow") == [1]  # the first has shown what one costs
