"""The quality benchmark: searches, compressed experts, sampling error, and what it prints."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.kept import code_hash
from benchmarks.quality import __main__ as quality
from benchmarks.quality.compressed import (
    SCHEMES,
    as_matrix,
    grouped,
    grouped_bits,
    of_rank,
    switched,
)
from benchmarks.quality.measure import Measured
from benchmarks.quality.sampling import spread
from benchmarks.quality.tables import reached
from benchmarks.quality.trials import Axis, search
from benchmarks.quality.zoos import ZOOS, held_back
from tests.tiny_zoo import TinyZoo
from tintray.jobs.runs.evaluate import TaskAnswers
from tintray.tasks.classes import CLASSIFICATION

AXES = (Axis("fit.tint_lr", 1e-2, 10), Axis("fit.schedule", names=("constant", "linear")))
RANDOM = torch.Generator().manual_seed(0)
VECTORS = {
    "weight": torch.randn(24, 16, generator=RANDOM),
    "bias": torch.randn(24, generator=RANDOM),
    "position": torch.randn(1, 9, 16, generator=RANDOM),
}


def peak_at(rate: float, schedule: str) -> list[tuple[str, ...]]:
    tried = []

    def score(found: tuple[str, ...]) -> float:
        tried.append(found)
        distance = abs(math.log10(float(found[0].partition("=")[2]) / rate))
        return 1 - 0.1 * distance - 0.05 * (found[1] != f"fit.schedule={schedule}")

    best, count = search(AXES, score)
    assert float(best[0].removeprefix("fit.tint_lr=")) == rate
    assert best[1] == f"fit.schedule={schedule}"
    assert count == len(tried) == len(set(tried))
    return tried


@pytest.mark.parametrize("rate", [1e-2, 1e-5, 1000.0])
def test_a_search_finds_the_best_settings_wherever_they_lie(rate: float) -> None:
    assert peak_at(rate, "linear")[0] == ("fit.tint_lr=0.01", "fit.schedule=constant")


def test_a_search_ends_with_its_trials() -> None:
    best, count = search(AXES, lambda found: float(found[0].partition("=")[2]), most=4)
    assert (best[0], count) == ("fit.tint_lr=10", 4)


def test_four_groups_are_the_means_by_sign_and_size() -> None:
    values = torch.tensor([4.0, 2.0, 0.5, -0.5, -1.0, -3.0])
    assert grouped(values).tolist() == [3.0, 3.0, 0.5, -0.75, -0.75, -3.0]
    assert grouped_bits(6) == 2 * 6 + 4 * 16


def test_a_product_of_full_rank_gives_back_the_matrix() -> None:
    exact = of_rank(lambda column: column, lambda count: 32 * count)
    found, bits = exact(VECTORS, 10**9)
    for name in ("weight", "position"):
        assert torch.allclose(found[name], VECTORS[name], atol=1e-5)
    assert torch.equal(found["bias"], grouped(VECTORS["bias"]))
    ranks = {(24, 16): 16, (9, 16): 9}
    assert bits == grouped_bits(24) + sum(r * (32 * (m + n) + 16) for (m, n), r in ranks.items())


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("most", [-1, 400, 4000])
def test_a_scheme_takes_no_more_bits_than_it_may_and_uses_them(name: str, most: int) -> None:
    found, bits = SCHEMES[name].fit(VECTORS, most)
    assert 0 <= bits <= max(0, most)
    assert {key: tensor.shape for key, tensor in found.items()} == {
        key: tensor.shape for key, tensor in VECTORS.items()
    }
    if most == 4000:
        pairs = [(found[key] - VECTORS[key], VECTORS[key]) for key in VECTORS]
        error, whole = (sum(float(t.square().sum()) for t in of) for of in zip(*pairs, strict=True))
        assert bits > most / 2 and error < 0.7 * whole


def test_a_switched_tensor_keeps_the_largest_entries_with_their_signs() -> None:
    tensor = torch.tensor([[5.0, -0.1, 0.2], [-5.0, 0.1, 0.05]])
    found, bits = switched(tensor, 40)  # two ends, a bit for each place, a sign for two of them
    assert found.tolist() == [[5.0, 0, 0], [-5.0, 0, 0]]
    assert bits == 2 * 16 + 6 + 2 * 1


def test_tensors_with_one_long_side_are_vectors() -> None:
    assert as_matrix(torch.zeros(1, 1, 8)) is None and as_matrix(torch.zeros(8)) is None
    conv = as_matrix(torch.zeros(4, 3, 2, 2))
    assert conv is not None and conv.shape == (4, 12)


def test_sampling_error_is_that_of_a_share() -> None:
    """With an expert that is always right: √(p (1 - p) / n)."""
    labels = torch.zeros(400, dtype=torch.long)
    expert = torch.tensor([[1.0, 0.0]]).repeat(400, 1)
    merged = expert.clone()
    merged[:100] = torch.tensor([0.0, 1.0])
    found = spread(TaskAnswers(CLASSIFICATION, merged, expert, labels, None), draws=2000)
    assert found == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.1)


def run_of(kept: float, seconds: float) -> Measured:
    return Measured(0.9, {"one": kept}, {"one": kept}, 0.004, 100, seconds, 10)


def test_the_time_to_a_share_is_between_the_fits_around_it() -> None:
    curve = {100: run_of(0.96, 50), 15: run_of(0.8, 10), 30: run_of(0.9, 20)}
    assert reached(curve, 0.95) == pytest.approx(20 + 30 * 5 / 6)
    assert reached(curve, 0.7) == 10
    assert reached(curve, 0.98) is None


def test_code_has_another_hash_when_it_computes_something_else(tmp_path: Path) -> None:
    module = tmp_path / "jobs/engine/one.py"
    module.parent.mkdir(parents=True)

    def hashed(text: str) -> str:
        module.write_text(text)
        code_hash.cache_clear()
        return code_hash(root=tmp_path)

    first = hashed('"""One."""\nRATE = 1\n"""Its rate."""\n')
    assert hashed("# two\nRATE = 1\n") == first
    assert hashed("RATE = 2\n") != first


def test_trials_learn_from_one_part_of_a_pool_and_are_judged_on_another(tmp_path: Path) -> None:
    spec = ZOOS["hard"].spec(tmp_path, ("fit.rounds=5",))
    assert spec.fit.rounds == 5 and len(spec.tasks) == 10
    task = held_back(spec).tasks[0]
    assert task.test is not None
    assert (task.pool.path, task.pool.split, task.pool.sample) == (
        spec.tasks[0].pool.path, "train[:80%]", 1200
    )  # fmt: skip
    assert (task.test.path, task.test.split) == (spec.tasks[0].pool.path, "train[80%:]")


@pytest.mark.parametrize("name", ["hards", "hard.nix", "text.best.small"])
def test_a_row_that_is_none_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        quality.main(["--only", name])
    assert f"--only {name}: expected one of hard, mild," in capsys.readouterr().err


def test_a_zoo_that_is_not_there_is_named_with_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main(["--only", "digits", "many.small", "--zoos", str(tmp_path)]) == 2
    made = f"python examples/digits.py {tmp_path / 'digits'}"
    assert f"make it with `{made}`" in capsys.readouterr().err


def test_the_last_line_has_every_zoo_and_null_for_what_was_not_asked_for(
    tmp_path: Path,
    tiny: TinyZoo,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny.copy(tmp_path / "digits").job_file(tmp_path)
    monkeypatch.setattr("benchmarks.quality.untrained.data_free", lambda tasks: ["average", "ties"])
    monkeypatch.setitem(quality.ZOOS, "digits", replace(ZOOS["digits"], job="digits/job.yaml"))
    given = ["--zoos", str(tmp_path), "--store", str(tmp_path), "--rounds", "2"]
    only = ["--only", "digits", "floor"]
    assert quality.main([*only, "--seeds", "2", *given]) == 0
    said = capsys.readouterr().out
    last = json.loads(said.splitlines()[-1])
    assert last["hard"] == {"small": None, "medium": None, "best": None}
    assert last["mild"] == {"small": None}
    assert {name: last[name] for name in ("text", "dense", "lora", "many")} == dict.fromkeys(
        ("text", "dense", "lora", "many")
    )
    assert 0.1 < last["digits"] <= 1.1 and -100 < last["floor"] < 100
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert quality.main([*only, "--seeds", "2", *given]) == 0  # from what was kept
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == last
    assert (tmp_path / "runs.jsonl").read_text().splitlines() == lines
