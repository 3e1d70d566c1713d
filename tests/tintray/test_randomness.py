"""Which examples a round sees: all equally often, and decided by seed, task and round alone."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from tintray.numerics.randomness import sample, sample_tasks, stream

pools = st.integers(1, 30)
batches = st.integers(1, 40)


@given(pools, batches, st.integers(0, 5))
def test_every_example_is_seen_once_per_epoch(examples: int, batch: int, seed: int) -> None:
    rounds = 3 * examples // batch + 1
    seen = torch.cat([sample(seed, "t", n, examples, batch) for n in range(rounds)]).tolist()
    for start in range(0, len(seen) - examples + 1, examples):
        assert sorted(seen[start : start + examples]) == list(range(examples))
    counts = Counter(seen)
    assert max(counts.values()) - min(counts[n] for n in range(examples)) <= 1


@given(pools, batches, st.integers(0, 100))
def test_a_round_can_be_asked_for_alone(examples: int, batch: int, round_: int) -> None:
    """A resumed job draws what it would have drawn: nothing depends on what was drawn before."""
    torch.manual_seed(round_)
    first = sample(1, "task", round_, examples, batch)
    torch.rand(3)
    sample(1, "task", round_ + 1, examples, batch)
    assert torch.equal(sample(1, "task", round_, examples, batch), first)
    assert first.shape == (batch,)


def test_seed_task_and_epoch_each_decide() -> None:
    def epoch(seed: int, task: str, number: int) -> list[int]:
        return sample(seed, task, number, 64, 64).tolist()

    orders = [epoch(0, "a", 0), epoch(1, "a", 0), epoch(0, "b", 0), epoch(0, "a", 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_streams_of_different_purposes_differ() -> None:
    purposes = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1), (0, "a1")]
    drawn = {tuple(torch.rand(2, generator=stream(*purpose)).tolist()) for purpose in purposes}
    assert len(drawn) == len(purposes)


def test_sampling_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    sample(0, "a", 3, 10, 4)
    assert torch.equal(torch.rand(1), expected)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_every_task_takes_part_equally_often(tasks: int, count: int, seed: int) -> None:
    count = min(count, tasks)
    an_order = -(-tasks // count)
    for start in (0, an_order):
        rounds = [sample_tasks(seed, start + n, tasks, count) for n in range(an_order)]
        assert all(len(set(chosen)) == count and chosen == sorted(chosen) for chosen in rounds)
        assert set().union(*rounds) == set(range(tasks))


def test_a_sample_of_tasks_depends_on_seed_and_round() -> None:
    found = {tuple(sample_tasks(seed, n, 200, 20)) for seed in range(3) for n in range(10)}
    assert len(found) == 30
    assert sample_tasks(7, 3, 200, 20) == sample_tasks(7, 3, 200, 20)
