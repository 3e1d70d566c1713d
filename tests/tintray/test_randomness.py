"""Which examples a round sees: all equally often, and decided by seed, task and round alone."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from tintray.numerics.randomness import sample, sample_tasks, stream


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_every_example_is_seen_once_per_epoch(examples: int, batch: int, seed: int) -> None:
    rounds = 3 * examples // batch + 1
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    parts = [sample(seed, "t", n, examples, batch) for n in reversed(range(rounds))][::-1]
    seen = torch.cat(parts).tolist()
    for start in range(0, len(seen) - examples + 1, examples):
        assert sorted(seen[start : start + examples]) == list(range(examples))
    counts = Counter(seen)
    assert max(counts.values()) - min(counts[n] for n in range(examples)) <= 1
    # A resumed job draws what it would have drawn: nothing depends on what was drawn before.
    assert all(torch.equal(sample(seed, "t", n, examples, batch), parts[n]) for n in range(rounds))
    assert torch.equal(torch.get_rng_state(), state), "the global stream is left alone"


def test_seed_task_epoch_and_purpose_each_decide() -> None:
    drawn = [
        sample(s, task, n, 64, 64)
        for s, task, n in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    ]
    assert len({tuple(order.tolist()) for order in drawn}) == 4
    purposes = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1), (0, "a1")]
    values = {tuple(torch.rand(2, generator=stream(*purpose)).tolist()) for purpose in purposes}
    assert len(values) == len(purposes)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_every_task_takes_part_equally_often(tasks: int, count: int, seed: int) -> None:
    count = min(count, tasks)
    an_order = -(-tasks // count)
    for start in (0, an_order):
        rounds = [sample_tasks(seed, start + n, tasks, count) for n in range(an_order)]
        assert all(len(set(chosen)) == count and chosen == sorted(chosen) for chosen in rounds)
        assert set().union(*rounds) == set(range(tasks))


def test_a_sample_of_tasks_depends_on_seed_and_round() -> None:
    drawn = {tuple(sample_tasks(seed, n, 200, 20)) for seed in range(3) for n in range(10)}
    assert len(drawn) == 30
    assert sample_tasks(7, 3, 200, 20) == sample_tasks(7, 3, 200, 20)
