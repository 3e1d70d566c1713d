"""Task groups are the job's, hosts are the cluster's; and a crew can be asked before a fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_zoo import CLASSES, POOL, TASKS, TEST, TinyZoo
from tintray.errors import CheckpointError, SpecError
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.configs import Prepared
from tintray.jobs.engine.grouping import (
    DEFAULT_MICRO_BATCH,
    MOST_GROUPS,
    default_groups,
    form_groups,
    spread_groups,
)
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.storage.artifacts.store import open_store


@given(st.integers(1, 300), st.integers(1, 300))
def test_groups_cut_the_tasks_in_order_into_nearly_equal_parts(tasks: int, groups: int) -> None:
    formed = form_groups(tasks, groups)
    assert [task for group in formed for task in group] == list(range(tasks))
    assert len(formed) == min(tasks, groups)
    sizes = [len(group) for group in formed]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 600), st.integers(1, 600))
def test_groups_that_nobody_chose_fill_a_micro_batch_each(tasks: int, batch_size: int) -> None:
    groups = default_groups(tasks, batch_size)
    assert 1 <= groups <= min(tasks, MOST_GROUPS)
    examples = tasks * batch_size
    assert groups == 1 or examples >= groups * DEFAULT_MICRO_BATCH
    another = groups + 1
    if another <= min(tasks, MOST_GROUPS):
        assert examples < another * DEFAULT_MICRO_BATCH


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 20))
def test_every_group_has_one_host_and_no_host_is_idle_or_overloaded(
    tasks: int, groups: int, workers: int
) -> None:
    formed = form_groups(tasks, groups)
    hands = spread_groups(formed, workers)
    assert sorted(number for hand in hands for number in hand) == list(range(len(formed)))
    assert len(hands) == min(workers, len(formed))
    assert all(hands)
    loads = [sum(len(formed[number]) for number in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(len(group) for group in formed)


def test_a_survey_counts_the_whole_backbone_whatever_the_site(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    head = load_base_model(tiny.spec(tmp_path))
    block = load_base_model(tiny.spec(tmp_path, tint={"site": "vit.layers.2"}))
    assert head.parameters == block.parameters == head.partition.layout.numel
    assert block.partition.layout.numel < head.parameters
    assert head.digest == block.digest
    assert not (tmp_path / "catalog.db").exists()


def test_checking_tells_what_a_job_would_use_and_writes_nothing(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    spec = tiny.spec(tmp_path / "store")
    fleet = InProcessBackend(1)
    facts = WorkerPool(Worker, fleet, spec, load_base_model(spec)).check()
    fleet.close()
    assert list(facts) == list(TASKS)
    for name, found in facts.items():
        assert found.classes == CLASSES[name]
        assert found.pool_examples == POOL
        assert found.test_examples == (0 if name == "four" else TEST)
        assert set(found.configs) == {"config.json", "preprocessor_config.json"}
    assert not (tmp_path / "store").exists()


def test_the_first_bad_task_in_the_jobs_order_is_named(tiny: TinyZoo, tmp_path: Path) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    for task in ("three", "five"):
        (zoo.folder / task / "model.safetensors").unlink()
    spec = zoo.spec(tmp_path / "store")
    fleet = InProcessBackend(1)
    with pytest.raises(CheckpointError, match=r"tasks\.three\.expert"):
        WorkerPool(Worker, fleet, spec, load_base_model(spec)).check()
    fleet.close()


def test_a_site_is_refused_by_the_survey(tiny: TinyZoo, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"tint\.site"):
        load_base_model(tiny.spec(tmp_path, tint={"site": "vit.blocks.0"}))


def test_a_prepared_crew_merges_and_agrees(tiny: TinyZoo, tmp_path: Path) -> None:
    """Before any round, Λ = 0 is the base and one task's own vector brings back its expert."""
    spec = tiny.spec(tmp_path, tasks=("three", "five"))
    ground = load_base_model(spec)
    fleet = InProcessBackend(1)
    crew = WorkerPool(Worker, fleet, spec, ground)
    crew.check()
    done: list[Prepared] = []
    prepared = crew.prepare(open_store(spec.store), done.append)
    assert list(prepared.values()) == done
    layout = ground.partition.layout
    base = {n: p.detach() for n, p in ground.partition.module.named_parameters()}
    coefficients = np.zeros((2, len(layout.units)), dtype=np.float32)
    assert np.array_equal(crew.merge(coefficients), layout.flatten(base).numpy())
    coefficients[1] = 1.0
    theta = crew.merge(coefficients)
    host = crew.assignment.hosts["five"]
    assert host.call(Worker.agreement, "five", 128, theta).result() == 1.0
    assert host.call(Worker.agreement, "three", 128, theta).result() < 1.0
    assert crew.peak_memory() > 0
    fleet.close()
