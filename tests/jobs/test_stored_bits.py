"""Merges whose tints are stored rounded: measured as stored, grown, exported; and budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tintray
from tests.growing import GrowingStore
from tests.tiny_zoo import CLASSES, TinyZoo, comparable
from tintray.errors import SpecError
from tintray.jobs import api
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.budgets import with_prompt
from tintray.jobs.runs.merge_difference import diff_merges
from tintray.published.files import tint_file
from tintray.tinting.stored_tints import encode

SITES: list[Any] = [{"site": "prompt", "rank": 2}, "head"]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_merge_is_measured_and_grows_as_it_is_stored(
    tiny: TinyZoo, tmp_path: Path, bits: int
) -> None:
    """Every way of growing; the budget keeps the bits from becoming more."""
    store = GrowingStore(tiny, tmp_path / "store")
    tint = {"sites": SITES, "bits": bits, "budget": "100%"}
    first = store.run("two", "three", tint=tint)
    merges = [first]
    merges += [store.add("five", mode="tint"), store.add("four", mode="joint")]
    merges += [store.remove("five")]
    for summary in merges:
        merge = tintray.load(summary.url)
        assert {task.tint_bits for task in summary.tasks} == {bits}
        for task in merge.manifest.tasks:
            stored = load_file(merge.file(tint_file(task.name)))
            assert (
                stored.keys()
                == encode(merge.tint(task.name), merge.manifest.tasks[0].tint_bits).keys()
            )
            assert task.tint_bytes == sum(tensor.nbytes for tensor in stored.values())
        measured = api.evaluate(summary.url, **store.place)
        assert comparable(measured.tasks) == comparable(summary.tasks)
    exported = merge.export("two", tmp_path / "model")
    own = load_file(exported / "model.safetensors")
    assert torch.equal(own["classifier.weight"], merge.tint("two")["classifier.weight"])
    assert not diff_merges(first.url, first.url, catalog=store.place["catalog"]).tasks[0].parts


def test_a_task_that_few_bits_harm_is_stored_in_more(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tintray.jobs.engine import worker

    monkeypatch.setattr(worker, "MAY_LOSE", -2.0)  # whatever is lost is too much
    store = GrowingStore(tiny, tmp_path / "store")
    found = store.run("two", "three", tint={"sites": SITES, "bits": 4})
    assert {task.tint_bits for task in found.tasks} == {16}
    assert "task 'two' is stored in 16 bits: 4 cost too much" in found.notices


@pytest.mark.parametrize(
    ("budget", "site", "bits"),
    [
        ("3%", "prompt (rank 16), head", 8),
        ("100%", "prompt (rank 16), vit.layers.0, head", 32),
        ("300b", "prompt (rank 4), head", 8),
    ],
)
def test_a_budget_decides_and_holds_in_the_mean(
    tiny: TinyZoo, tmp_path: Path, budget: str, site: str, bits: int
) -> None:
    spec = tiny.spec(tmp_path, tint={"budget": budget})
    found = tintray.run(spec).summary()
    most = api.validate(spec).backbone_parameters * 4
    share = float(budget.rstrip("%")) / 100 if "%" in budget else 300 / most
    assert found.tint_bytes_share <= share
    assert (found.site, {task.tint_bits for task in found.tasks}) == (site, {bits})
    heads = {name: 17 * classes for name, classes in CLASSES.items()}
    assert all(found.tint_parameters_per_task[name] >= own for name, own in heads.items())


def test_a_budget_bounds_the_rank_that_is_left_out_and_refuses_what_is_too_large(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    def resolved(**tint: Any) -> str:
        return api.validate(tiny.spec(tmp_path, tint=tint)).site

    assert resolved(sites=["prompt", "head"], budget="5%") == "prompt (rank 8), head, in 32 bits"
    numbers = resolved(sites=["prompt", "head"], budget="130 numbers")
    assert numbers == "prompt (rank 2), head, in 32 bits"
    with pytest.raises(SpecError, match=r"^tint\.budget: at vit\.layers\.0 a task owns .* bits"):
        resolved(sites="vit.layers.0", budget="2%")
    with pytest.raises(SpecError, match=r"owns 60 numbers in the mean.*found 50 numbers"):
        resolved(budget="50 numbers")


def test_a_prompt_by_default_is_never_refused(tiny: TinyZoo, tmp_path: Path) -> None:
    spec = tiny.spec(tmp_path)
    base = load_base_model(spec)

    def found(budget: str) -> tuple[str, int | None]:
        tint = with_prompt(spec, base, budget)[0].tint
        return tint.told, tint.bits

    assert found("5%") == ("prompt (rank 8), head", 32)
    assert found("1%") == ("prompt (rank 4), head", 8)
    assert found("0.01%") == ("prompt (rank 4), head", 8)


def test_surgery_measures_heads_as_they_are(tiny: TinyZoo, tmp_path: Path) -> None:
    merge = {"method": "surgery", "init": "average"}
    with pytest.raises(SpecError, match=r"^tint\.bits: 'surgery'"):
        api.validate(tiny.spec(tmp_path, merge=merge, tint={"bits": 8}))
