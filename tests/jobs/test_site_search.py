"""``tint.sites: auto``: what is tried, what it costs, and that the search is not done twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.tiny_zoo import TinyZoo
from tests.workbench import tiny_workbench
from tintray.errors import SpecError
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.events import Notice
from tintray.published.manifest import Manifest
from tintray.tinting.site_search import (
    Trial,
    candidates,
    exhaustive_passes,
    first_steps,
    ranking,
    rungs,
    suffix_share,
    survivors,
)

SITES = {"head", "vit.layers.0", "vit.layers.1", "vit.layers.2"}


def run(zoo: TinyZoo, store: Path, **tint: Any) -> tuple[Manifest, list[str]]:
    """The manifest of a job that looks for its site, and what it told."""
    told: list[object] = []
    job = zoo.job(store, tint={"sites": "auto", **tint}, fit={"rounds": 60})
    merge = tintray.run(parse_spec(job, folder=zoo.folder), on_event=told.append)
    return merge.manifest, [event.text for event in told if isinstance(event, Notice)]


@pytest.fixture(scope="module")
def placed(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = tmp_path_factory.mktemp("placed")
    return *run(tiny, store), store


def test_the_merge_is_tinted_where_the_search_ended_and_it_cost_little(placed: Any) -> None:
    """Little: here with 60 rounds; the first trials weigh less the longer the fit is."""
    manifest, told, _ = placed
    report = manifest.placement
    assert manifest.site == report["site"] == report["ranking"][0]["site"]
    assert {trial["site"] for trial in report["ranking"]} == SITES
    assert all(len(trial["per_task"]) == 4 for trial in report["ranking"])
    assert any(report["site"] in text for text in told)
    assert report["exhaustive_passes"] == 4 * 60 * 6 * 4
    fits = [trial["passes"] for trial in report["ranking"] if trial["rung"] > 0]
    assert 0 < sum(fits) < 0.25 * report["exhaustive_passes"]
    # The first trials learn for a tenth of the rounds; here the pass over 40 examples weighs more.
    assert report["cost_share"] < 0.4


def test_a_second_job_finds_what_the_first_one_found(tiny: TinyZoo, placed: Any) -> None:
    manifest, told = run(tiny, placed[2])
    assert manifest.placement == placed[0].placement
    assert any("earlier search" in text for text in told)
    assert manifest.files == placed[0].files


def test_a_budget_leaves_out_what_is_larger(tiny: TinyZoo, tmp_path: Path) -> None:
    manifest, _ = run(tiny, tmp_path, budget="200 numbers")
    assert manifest.site == "head"
    with pytest.raises(SpecError, match=r"^tint\.budget.*at least 34"):
        run(tiny, tmp_path, budget="5 numbers")


def test_candidates_are_the_head_and_every_block(tiny: TinyZoo) -> None:
    base = tiny_workbench(tiny, ("two", "three")).base
    sites = candidates(base)
    assert {site.name for site in sites} == SITES
    shares = [suffix_share(base, site.name) for site in sites]
    assert shares == sorted(shares[1:], reverse=True) + shares[:1] or shares[0] == 0
    assert 0 < suffix_share(base, "vit.layers.2") < suffix_share(base, "vit.layers.0") < 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 13, 25])
def test_short_fits_take_a_small_part_of_all_fits(count: int) -> None:
    rounds = 300
    assert first_steps(rounds) == 30
    passes = sum(rung.survivors * rung.rounds for rung in rungs(count, rounds))
    assert passes <= 0.2 * exhaustive_passes(count, rounds, 1, 1)
    sizes = [count, *(rung.survivors for rung in rungs(count, rounds))]
    assert sizes == sorted(sizes, reverse=True)


def test_ranking_goes_by_the_last_trial_and_equals_by_parameters() -> None:
    reached = [("a", 0, 0.9), ("b", 0, 0.8), ("c", 0, 0.7), ("a", 1, 0.6), ("b", 1, 0.95)]
    trials = [Trial(site, 10, rung, agreement, (), 1.0) for site, rung, agreement in reached]
    assert [p.site for p in ranking(trials)] == ["b", "a", "c"]
    equals = [Trial(name, size, 0, 0.5, (), 1.0) for name, size in (("large", 20), ("small", 10))]
    assert survivors(equals, 1)[0].site == "small"
