"""A fit keeps examples back, is judged by them, and publishes the state that did best there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tintray
from tests.answers import call
from tests.tiny_zoo import POOL, TinyZoo
from tintray.errors import DataError
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.events import RoundDone
from tintray.pools.held_back import split_pool
from tintray.published.manifest import Manifest
from tintray.storage.catalog.catalog import Catalog


def fitted(spec: JobSpec) -> tuple[Manifest, list[RoundDone]]:
    """What a job publishes, and its rounds."""
    events: list[Any] = []
    merge = tintray.run(spec, on_event=events.append)
    return merge.manifest, [event for event in events if isinstance(event, RoundDone)]


def test_nothing_is_learned_from_what_is_held_back(tiny: TinyZoo, tmp_path: Path) -> None:
    """Other images in its place: the same merge, which agrees less with the expert on them."""
    zoo = tiny.copy(tmp_path / "zoo")
    fit = {"held_back": 8, "rounds": 30}
    before, _ = fitted(zoo.spec(tmp_path / "before", ("five", "three"), fit=fit))
    held = split_pool(POOL, 8, 0, "five")[1].numpy()
    images = zoo.arrays("five")["x_train"]
    images[held] = np.random.default_rng(0).integers(0, 256, images[held].shape)
    zoo.replace_arrays("five", x_train=images)
    after, _ = fitted(zoo.spec(tmp_path / "after", ("five", "three"), fit=fit))
    assert after.files["backbone.safetensors"] == before.files["backbone.safetensors"]
    assert after.files["tints/five.safetensors"] == before.files["tints/five.safetensors"]
    agreed = [manifest.tasks[0].held_back for manifest in (before, after)]
    assert agreed[0] != agreed[1]
    assert after.tasks[1].held_back == before.tasks[1].held_back


def test_it_is_told_in_events_status_rounds_and_result(tiny: TinyZoo, tmp_path: Path) -> None:
    spec = tiny.spec(tmp_path, ("five", "three"), fit={"held_back": 8})
    manifest, rounds = fitted(spec)
    last = rounds[-1].held_back
    assert list(last) == ["five", "three"]
    assert {task.name: task.held_back for task in manifest.tasks} == last
    where = ("--catalog", str(spec.catalog))
    status = call("status", manifest.job_id, *where, "--json").document
    assert {task["name"]: task["held_back"] for task in status["tasks"]} == last
    assert "held back" in call("status", manifest.job_id, *where).out
    with Catalog.open(spec.catalog, create=False) as catalog:
        assert catalog.jobs.rounds(manifest.job_id)[-1].metrics["held_back"] == last
    shown = call("show", manifest.ref, "--store", str(tmp_path), *where).out
    mean = sum(last.values()) / 2
    assert f"{100 * mean:.1f} % agreement with the experts on examples not learned" in shown


def test_of_a_small_pool_nothing_is_held_back_unless_asked(tiny: TinyZoo, tmp_path: Path) -> None:
    """It is watched as a whole, which is no figure to publish."""
    manifest, rounds = fitted(tiny.spec(tmp_path, ("five", "three")))
    assert [bool(event.held_back) for event in rounds] == [False, False, False, True]
    assert [task.held_back for task in manifest.tasks] == [None, None]
    with pytest.raises(
        DataError, match=rf"tasks\.five\.pool: expected more examples than the {POOL}"
    ):
        fitted(tiny.spec(tmp_path, ("five", "three"), fit={"held_back": POOL}))
    unwatched, rounds = fitted(tiny.spec(tmp_path, ("five", "three"), fit={"held_back": 0}))
    assert not any(event.held_back for event in rounds)
    assert unwatched.files["backbone.safetensors"] == manifest.files["backbone.safetensors"]
