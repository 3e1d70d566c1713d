"""Jobs that run a merging method, alone or as the start of the fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import tintray
from tests.tiny_zoo import TASKS, TinyZoo
from tests.workbench import Workbench, tiny_workbench
from tintray.errors import InputError, SpecError
from tintray.jobs import api
from tintray.jobs.config.job_file import JobSpec, parse_spec
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.job_size import job_recipe
from tintray.jobs.engine.plan import ClusterSize
from tintray.jobs.events import Event, Notice, TensorsMerged
from tintray.jobs.runs.methods import PreparedJob, resolve_job
from tintray.merging import methods, recipe, statistics, surgery
from tintray.merging.apply import directions, layers
from tintray.models.structure import backbone_names
from tintray.published.merge import Merge
from tintray.storage.artifacts.store import open_store

DATA_FREE = [name for name, known in methods().items() if not known.needs]


@pytest.fixture(scope="module")
def bench(tiny: TinyZoo) -> Workbench:
    return tiny_workbench(tiny)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all jobs here, so that experts predict their pools once."""
    return tmp_path_factory.mktemp("store")


def job(tiny: TinyZoo, store: Path, tasks: tuple[str, ...] = TASKS, **merge: Any) -> JobSpec:
    return parse_spec(tiny.job(store, tasks, merge=merge), folder=tiny.folder)


def load(summary: api.MergeSummary) -> Merge:
    return tintray.load(summary.url)


@pytest.mark.parametrize("name", DATA_FREE)
def test_a_method_alone_publishes_its_merge(
    tiny: TinyZoo, store: Path, bench: Workbench, name: str
) -> None:
    known = methods()[name]
    tasks = TASKS[: known.most or len(TASKS)]
    events: list[Any] = []
    summary = api.run(job(tiny, store, tasks, method=name), on_event=events.append)
    merge = load(summary)
    vectors = tiny_workbench(tiny, tasks).vectors if len(tasks) < 4 else bench.vectors
    scale = known.start(len(tasks))
    for slot, layer in layers(vectors, recipe(name)):
        if known.own is None:
            expected = layer.base + scale * directions(layer, recipe(name)).sum(0)
            torch.testing.assert_close(merge.backbone[slot.name], expected, atol=1e-5, rtol=1e-4)
            continue
        own = known.own(layer, **recipe(name).parameters)
        for task, delta in zip(TASKS, own, strict=True):
            found = merge.for_task(task).get_parameter(slot.name).data
            torch.testing.assert_close(found, layer.base + delta, atol=1e-5, rtol=1e-4)
    assert summary.rounds == 0
    assert torch.unique(merge.coefficients).tolist() == pytest.approx([scale])
    told = [event for event in events if isinstance(event, TensorsMerged)]
    assert told[-1].done == told[-1].total == vectors.layout.numel
    if known.own is not None:
        backbone = summary.backbone_parameters
        assert all(size > backbone for size in summary.tint_parameters_per_task.values())
        measured = api.evaluate(summary.url, store=str(store))
        assert measured.average == pytest.approx(summary.average)


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_statistics_are_measured_once(tiny: TinyZoo, store: Path, name: str) -> None:
    (kind,) = methods()[name].needs
    first = api.run(job(tiny, store, method=name))
    artifacts = open_store(str(store))
    records = {entry.key for entry in artifacts.list(f"cache/{kind}/")}
    assert len(records) == len(TASKS)
    before = {key: artifacts.get(key) for key in records}
    told: list[Event] = []
    second = api.run(job(tiny, store, method=name), on_event=told.append)
    said = [event.text for event in told if isinstance(event, Notice)]
    assert any(f"of {len(TASKS)} of {len(TASKS)} tasks were reused" in text for text in said), said
    assert said[-1].startswith({"fisher": "Fisher diagonals", "gram": "Gram matrices"}[kind])
    assert {entry.key for entry in artifacts.list(f"cache/{kind}/")} == records
    assert {key: artifacts.get(key) for key in records} == before
    merged = [load(summary).backbone for summary in (first, second)]
    assert all(torch.equal(tensor, merged[1][key]) for key, tensor in merged[0].items())


def test_fisher_is_the_expectation_of_squared_gradients(bench: Workbench) -> None:
    expert, pool = bench.experts["two"], bench.pools["two"]
    name = "vit.layernorm.weight"
    found = statistics.fisher_diagonal(expert, pool, [name])[name]
    parameter = expert.get_parameter(name)
    total = torch.zeros_like(parameter)
    for index in range(len(pool)):
        chances = expert(**pool.batch(slice(index, index + 1))).logits.softmax(-1)[0]
        for chance in chances:
            (gradient,) = torch.autograd.grad(chance.log(), parameter, retain_graph=True)
            total += chance.detach() * gradient**2
    torch.testing.assert_close(found, total / total.mean(), atol=1e-3, rtol=1e-3)


def test_grams_are_of_the_inputs_of_linear_layers(bench: Workbench) -> None:
    expert, pool = bench.experts["three"], bench.pools["three"]
    found = statistics.input_grams(expert, pool, backbone_names(expert))
    name = next(key for key in found if key.endswith("fc1.weight") or "intermediate" in key)
    seen = []
    layer = expert.get_submodule(name.removesuffix(".weight"))
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
    with torch.inference_mode():
        expert(**pool.batch(slice(None)))
    hook.remove()
    rows = torch.cat(seen)
    torch.testing.assert_close(found[name], rows.T @ rows / len(rows), atol=1e-4, rtol=1e-4)
    assert "vit.layernorm.weight" not in found


def test_featcal_is_fitted_once_alone_and_as_a_start(tiny: TinyZoo, tmp_path: Path) -> None:
    """On one member or on several, alone or as where a fit starts: the same bits."""
    merge = {"parameters": {"examples": 12, "start": 0.2}}
    alone = load(api.run(job(tiny, tmp_path / "store", method="featcal", **merge)))
    rates = dict.fromkeys(("coefficient_lr", "tint_lr"), 1e-12)
    fit = {"rounds": 1, "batch_size": 4, "correction_lr": 0, "held_back": 0, **rates}
    started = tiny.job(tmp_path / "store", merge={"init": "featcal", **merge}, fit=fit)
    told: list[Event] = []
    begun = load(api.run(parse_spec(started, folder=tiny.folder), on_event=told.append))
    texts = [event.text for event in told if isinstance(event, Notice)]
    assert "the layers fitted by FeatCal were reused from the store" in texts
    spec, base = resolve_job(job(tiny, tmp_path / "other", method="featcal", **merge))
    several = InProcessBackend(1, capacity=ClusterSize(3, 2**32))
    prepared = PreparedJob.of(spec, base, several, open_store(str(spec.store)))
    flat = prepared.merged(job_recipe(spec), None, lambda _: None)[""]
    several.close()
    of_base = dict(base.partition.module.named_parameters())
    for name, tensor in base.partition.layout.views(torch.from_numpy(flat)).items():
        assert torch.equal(tensor, alone.backbone[name])
        torch.testing.assert_close(begun.backbone[name], tensor, atol=1e-5, rtol=1e-4)
        assert not torch.equal(tensor, of_base[name]), name


@pytest.mark.parametrize("name", ["ties", "iso_cts", "regmean", "emr"])
def test_the_fit_starts_from_a_method(
    tiny: TinyZoo, store: Path, bench: Workbench, name: str
) -> None:
    """With a learning rate of next to nothing, the fit ends where the method alone ends."""
    rates = dict.fromkeys(("coefficient_lr", "tint_lr"), 1e-12)
    fit = {"rounds": 1, "batch_size": 4, "correction_lr": 0, **rates}
    started = tiny.job(store, merge={"init": name}, fit=fit)
    merge = load(api.run(parse_spec(started, folder=tiny.folder)))
    vectors = bench.vectors
    grams: dict[str, torch.Tensor] = {}
    if name == "regmean":
        names = [slot.name for slot in vectors.layout.slots]
        each = [statistics.input_grams(bench.experts[t], bench.pools[t], names) for t in TASKS]
        grams = {key: torch.stack([of[key] for of in each]) for key in each[0]}
    for slot, layer in layers(
        vectors, recipe(name), lambda key: {"gram": grams[key]} if key in grams else {}
    ):
        expected = layer.base + directions(layer, recipe(name)).sum(0)
        torch.testing.assert_close(merge.backbone[slot.name], expected, atol=1e-4, rtol=1e-3)
    assert torch.allclose(merge.coefficients, torch.tensor(1.0))


def test_coefficients_move_a_methods_directions(
    tiny: TinyZoo, store: Path, bench: Workbench
) -> None:
    fit = {"rounds": 6, "batch_size": 6, "coefficient_lr": 0.05, "correction_lr": 0}
    learned = tiny.job(store, merge={"init": "ties", "parameters": {"density": 0.5}}, fit=fit)
    merge = load(api.run(parse_spec(learned, folder=tiny.folder)))
    vectors = bench.vectors
    assert (merge.coefficients - 1).abs().amax() > 0.01
    columns = dict(zip([u.name for u in vectors.layout.units], merge.coefficients.T, strict=True))
    for slot, layer in layers(vectors, recipe("ties", {"density": 0.5})):
        each = directions(layer, recipe("ties", {"density": 0.5}))
        expected = layer.base + torch.tensordot(columns[slot.name], each, 1)
        torch.testing.assert_close(merge.backbone[slot.name], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "columns"), [("adamerging", None), ("adamerging_task", 1)])
def test_adamerging_lessens_the_entropy_of_predictions(
    tiny: TinyZoo, store: Path, bench: Workbench, name: str, columns: int | None
) -> None:
    def entropy(merge: Merge) -> float:
        total = 0.0
        for task in TASKS:
            with torch.inference_mode():
                batch = bench.pools[task].batch(slice(None))
                logs = merge.for_task(task)(**batch).logits.log_softmax(-1)
            total -= float((logs.exp() * logs).sum(-1).mean())
        return total

    fit = {"rounds": 15, "batch_size": 12, "coefficient_lr": 0.02}
    summary = api.run(
        parse_spec(tiny.job(store, merge={"method": name}, fit=fit), folder=tiny.folder)
    )
    learned = load(summary)
    assert columns in (None, learned.coefficients.shape[1])
    plain = load(api.run(job(tiny, store, method="task_arithmetic")))
    assert entropy(learned) < entropy(plain)
    heads = learned.tint("three")
    expert = bench.experts["three"].state_dict()
    assert all(torch.equal(tensor, expert[key]) for key, tensor in heads.items())


# Bad input


@pytest.mark.parametrize(
    ("merge", "said"),
    [
        ({"method": "tise"}, ["merge.method", "found 'tise'", "did you mean 'ties'?"]),
        ({"init": "ties_"}, ["merge.init", "did you mean 'ties'?"]),
        ({"method": "ties", "parameters": {"density": 2}}, ["density", "(0, 1]", "found 2"]),
        ({"method": "ties", "memory": "2 gigs"}, ["merge.memory", "512MiB", "'2 gigs'"]),
        ({"method": "ties", "memory": 0}, ["merge.memory", "found 0"]),
        ({"method": "dare", "parameters": {"drop": "much"}}, ["merge.parameters.drop"]),
    ],
)
def test_a_job_file_with_a_bad_method_is_refused(
    tiny: TinyZoo, tmp_path: Path, merge: Mapping[str, Any], said: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        job(tiny, tmp_path / "store", **merge)
    assert all(part in str(caught.value) for part in said), caught.value
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("merge", "said"),
    [
        ({"method": "slerp"}, "'slerp' merges at most 2 experts, found 4"),
        ({"init": "slerp"}, "'slerp' merges at most 2 experts, found 4"),
        ({"method": "tsv_m", "memory": 1000}, "merge.memory: 'tsv_m' needs"),
    ],
)
@pytest.mark.parametrize("command", [api.run, api.validate])
def test_a_method_that_cannot_run_is_refused_before_a_byte_is_written(
    tiny: TinyZoo, tmp_path: Path, merge: Mapping[str, Any], said: str, command: Any
) -> None:
    with pytest.raises(InputError, match=said):
        command(job(tiny, tmp_path / "store", **merge))
    assert not (tmp_path / "store").exists()


def test_memory_is_written_as_people_write_it(tiny: TinyZoo, store: Path) -> None:
    sizes = {"2GiB": 2 * 2**30, "512 MiB": 512 * 2**20, "1.5gb": 1_500_000_000, 4096: 4096}
    for written, expected in sizes.items():
        assert job(tiny, store, memory=written).merge.memory == expected
    other = job(tiny, store, memory="1GiB").digest()
    assert other == job(tiny, store).digest()


# Surgery


def test_surgery_brings_features_towards_the_experts(
    tiny: TinyZoo, store: Path, bench: Workbench
) -> None:
    merge = load(api.run(job(tiny, store, method="surgery")))
    plain = load(api.run(job(tiny, store, method="task_arithmetic")))
    assert all(torch.equal(t, plain.backbone[n]) for n, t in merge.backbone.items())
    for task in TASKS:
        pool = bench.pools[task]
        wanted = surgery.features(bench.experts[task], pool)
        before = surgery.features(plain.for_task(task), pool)
        tensors = {n: t for n, t in merge.tint(task).items() if n.startswith(surgery.PREFIX)}
        after = surgery.operate(before, tensors[surgery.DOWN], tensors[surgery.UP])
        assert (after - wanted).abs().mean() < 0.8 * (before - wanted).abs().mean()


def test_surgery_is_part_of_the_published_merge(tiny: TinyZoo, store: Path, tmp_path: Path) -> None:
    summary = api.run(job(tiny, store, method="surgery", init="ties"))
    again = api.evaluate(summary.url, store=str(store))
    for published, measured in zip(summary.tasks, again.tasks, strict=True):
        assert published.merged == pytest.approx(measured.merged)
        assert published.calibration and measured.calibration
        for side in ("merged", "expert"):
            brier = measured.calibration[side]["brier"]  # None where there are no labels
            assert published.calibration[side]["brier"] == pytest.approx(brier, abs=1e-6)
    width = 16  # of the tiny zoo's features, and the most that a module's rank can be
    plain = api.run(job(tiny, store, method="ties"))
    for task, own in summary.tint_parameters_per_task.items():
        assert own - plain.tint_parameters_per_task[task] == 2 * width * surgery.RANK
    with pytest.raises(InputError, match="has a surgery module before its head"):
        api.export(summary.url, "two", tmp_path / "out", store=str(store))
    assert not (tmp_path / "out").exists()
