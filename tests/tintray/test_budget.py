"""What a budget buys: of any ladder, and of real models."""

from __future__ import annotations

import pytest

from tests.tiny_zoo import TinyZoo
from tests.workbench import tiny_workbench
from tintray.limits import Budget, parse_budget
from tintray.numerics.sites import HEAD, PROMPT, TintSite
from tintray.tinting.budget import choose, costs, ladder, owned_shapes, with_ranks
from tintray.tinting.partition import partition

RUNGS = [{bits: size * bits / 32 for bits in (4, 8, 16, 32)} for size in (100, 140, 200, 400)]


@pytest.mark.parametrize(
    ("budget", "found"),
    [
        (12, None),
        (12.5, (0, 4)),
        (17.5, (1, 4)),
        (25, (0, 8)),  # 4 bits would buy more
        (35, (1, 8)),
        (70, (2, 8)),
        (100, (3, 8)),
        (200, (3, 16)),
        (1000, (3, 32)),
    ],
)
def test_a_budget_buys_the_highest_rung_in_the_most_bits(
    budget: float, found: tuple[int, int] | None
) -> None:
    assert choose(budget, RUNGS) == found


def test_float32_is_preferred_where_enough_fits_in_it() -> None:
    assert choose(200, RUNGS, enough=2) == (2, 32)
    assert choose(199, RUNGS, enough=2) == (3, 8)
    assert choose(200, RUNGS, allowed=(16,), enough=2) == (3, 16)
    assert choose(20, RUNGS, allowed=(8, 16, 32)) is None


def test_more_budget_buys_no_lower_rung() -> None:
    bought = [choose(budget, RUNGS) for budget in range(25, 500)]
    rungs = [found[0] for found in bought if found is not None]
    assert len(rungs) == len(bought)
    assert rungs == sorted(rungs)


def test_the_ladder_of_a_model_grows_from_the_head_to_a_block_of_its_own(tiny: TinyZoo) -> None:
    base = tiny_workbench(tiny, ("two", "three")).base
    rungs = ladder(base)
    assert rungs[0] == (TintSite(HEAD),)
    assert rungs[1] == (TintSite(PROMPT, 1), TintSite(HEAD))
    assert rungs[-1][1] == TintSite("vit.layers.0")
    sizes = [costs(owned_shapes(partition(base, rung)), [[(3, 16)]])[32] for rung in rungs]
    assert sizes == sorted(sizes)
    assert sizes[0] == 4 * 3 * 16


def test_ranks_that_a_job_names_stay(tiny: TinyZoo) -> None:
    base = tiny_workbench(tiny, ("two", "three")).base
    named = (TintSite(PROMPT, 3), TintSite(HEAD))
    assert with_ranks(base, named) == [named]
    open_ = with_ranks(base, (TintSite(PROMPT, lr=0.1), TintSite(HEAD)))
    assert open_[0] == (TintSite(PROMPT, 1, 0.1), TintSite(HEAD))


def test_the_cost_is_that_of_the_mean_task() -> None:
    heads = [[(10, 128), (10,)], [(30, 128), (30,)]]
    assert costs([(8, 128)], heads, numbers=True)[8] == 8 * 128 + 20 * 129
    assert costs([], heads)[32] == 4 * 20 * 129


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.5%", Budget(0.005, "share")),
        ("16 %", Budget(0.16, "share")),
        ("2MiB", Budget(2 * 2**20, "bytes")),
        ("20_000 numbers", Budget(20_000, "numbers")),
        ("1,544 numbers", Budget(1544, "numbers")),
    ],
)
def test_a_budget_is_a_share_a_size_or_a_count(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget
    assert Budget(0.005, "share").of(1000) == 20


@pytest.mark.parametrize("text", ["0%", "101%", "5", "0 numbers", "half", "-1%", "nan%"])
def test_anything_else_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_budget(text)
