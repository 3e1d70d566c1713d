"""Task groups are the job's, hosts are the cluster's."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_zoo import TinyZoo
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.grouping import (
    DEFAULT_MICRO_BATCH,
    MOST_GROUPS,
    default_groups,
    form_groups,
    spread_groups,
)


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
    full = tasks * batch_size // DEFAULT_MICRO_BATCH
    assert groups == 1 or groups <= full
    assert groups == min(tasks, MOST_GROUPS) or full <= groups


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 20))
def test_every_group_has_one_host_and_no_host_is_idle_or_overloaded(
    tasks: int, groups: int, workers: int
) -> None:
    formed = form_groups(tasks, groups)
    hosted = spread_groups(formed, workers)
    assert sorted(number for numbers in hosted for number in numbers) == list(range(len(formed)))
    assert len(hosted) == min(workers, len(formed))
    assert all(hosted)
    loads = [sum(len(formed[number]) for number in numbers) for numbers in hosted]
    assert max(loads) - min(loads) <= max(len(group) for group in formed)


def test_a_base_has_its_whole_backbone_whatever_the_site(tiny: TinyZoo, tmp_path: Path) -> None:
    head = load_base_model(tiny.spec(tmp_path))
    block = load_base_model(tiny.spec(tmp_path, tint={"sites": "vit.layers.2"}))
    assert head.parameters == block.parameters == head.partition.layout.numel
    assert block.partition.layout.numel < head.parameters
    assert head.digest == block.digest
