"""The plan: what fits is laid out within what there is; what does not is refused with numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_zoo import TinyZoo
from tintray.data.counting import extent
from tintray.data.source import DataSource
from tintray.errors import SpecError
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.job_size import activation_bytes, job_size, make_plan, pool_bytes
from tintray.jobs.engine.plan import (
    PROCESS_BYTES,
    Choice,
    ClusterSize,
    JobSize,
    check_plan,
    lay_out,
    object_store_bytes,
    worker_bytes,
)
from tintray.jobs.engine.resources import available_memory, free_disk
from tintray.jobs.engine.worker import Worker
from tintray.jobs.engine.worker_pool import WorkerPool
from tintray.numerics.layout import build_layout

GIB = 2**30
LAYOUT = build_layout({f"m.layers.{n}.w": (4096, 4096) for n in range(6)})  # 100 M parameters
JOB = JobSize(LAYOUT, tasks=20, private=5_000, groups=8)
MACHINE = ClusterSize(cpus=4, memory=64 * GIB, disk=100 * GIB)


def test_a_job_that_fits_is_laid_out_by_the_cluster_and_a_small_one_has_one_shard() -> None:
    plan = check_plan(JOB, MACHINE, Choice())
    assert (plan.workers, plan.shards, plan.mapped) == (4, 4, False)
    assert plan.memory <= MACHINE.memory
    assert plan.disk == 20 * 4 * LAYOUT.numel
    assert check_plan(JOB, MACHINE, Choice(workers=2, shards=3)).workers == 2
    small = JobSize(build_layout({"w": (100, 100)}), tasks=8, private=10, groups=8)
    plan = check_plan(small, MACHINE, Choice())
    assert (plan.shards, plan.in_process) == (1, True)  # and no process for it
    assert plan.shard < 2**20
    assert not check_plan(small, MACHINE, Choice(shards=1)).in_process
    assert not check_plan(JOB, MACHINE, Choice()).in_process
    # A shared correction is planned for with its optimiser and the states that are kept of it.
    corrected = lay_out(replace(JOB, corrected=True), MACHINE, Choice(shards=1))
    plain = lay_out(JOB, MACHINE, Choice(shards=1))
    assert corrected.memory - plain.memory == 6 * 4 * LAYOUT.numel


def test_task_vectors_stay_in_their_files_where_memory_would_not_hold_them() -> None:
    plan = check_plan(JOB, replace(MACHINE, memory=18 * GIB), Choice())
    assert plan.mapped
    assert plan.memory <= 18 * GIB
    assert not check_plan(JOB, replace(MACHINE, memory=18 * GIB), Choice(format="int8")).mapped


def test_activations_are_computed_again_where_a_job_would_not_fit_otherwise() -> None:
    """On a card, and in memory; what the job file says is done."""
    job = replace(JOB, activation_bytes=30 * GIB, checkpointed_bytes=2 * GIB)
    card = ClusterSize(cpus=16, memory=2**40, gpus=2, card=24 * GIB)
    for machine, choice in ((card, Choice(gpus=1)), (MACHINE, Choice(workers=2, format="int8"))):
        plan = check_plan(job, machine, choice)
        assert plan.checkpointed
        assert plan == check_plan(job, machine, replace(choice, checkpointed=True))
        with pytest.raises(SpecError, match=r"would fit: .*gradient_checkpointing: true"):
            check_plan(job, machine, replace(choice, checkpointed=False))
        roomy = replace(machine, memory=2**41, card=80 * GIB)
        assert not check_plan(job, roomy, choice).checkpointed
        assert check_plan(job, roomy, replace(choice, checkpointed=True)).checkpointed


def test_adapters_count_as_what_they_hold() -> None:
    """Two hundred fit where as many models do not; they stay in memory, whatever is in files."""
    factors = [8 * 2**20] * 200
    adapters = JobSize(LAYOUT, tasks=200, private=5_000, groups=8, adapters=factors)
    models = JobSize(LAYOUT, tasks=200, private=5_000, groups=8)
    assert check_plan(adapters, MACHINE, Choice()).disk == sum(factors)
    with pytest.raises(SpecError, match=r"take 75 GiB on the disk"):
        check_plan(models, replace(MACHINE, disk=50 * GIB), Choice())
    some = JobSize(LAYOUT, tasks=210, private=5_000, groups=8, adapters=factors)
    assert some.vector_bytes("f32") == sum(factors) + 10 * 4 * LAYOUT.numel
    plan = check_plan(some, replace(MACHINE, memory=18 * GIB), Choice())
    assert plan.mapped
    assert plan.shard * plan.shards > sum(factors)


@pytest.mark.parametrize("method", ["regmean", "fisher", "tsv_m", "ties"])
def test_a_fit_counts_the_method_that_it_starts_from(
    tiny: TinyZoo, tmp_path: Path, method: str
) -> None:
    """Members that measure, and in each shard the largest tensor of all tasks; nothing is mapped.

    Of the four methods one measures products of inputs, one gradients, one decompositions.
    """
    tasks, choice = ("two", "three"), Choice(shards=2)
    plain, started = (tiny.spec(tmp_path, tasks, merge={"init": i}) for i in ("base", method))
    base = load_base_model(plain)
    slots = base.partition.layout.slots
    sizes = [job_size(spec, base) for spec in (plain, started)]
    before, after = (lay_out(size, MACHINE, choice) for size in sizes)
    largest = max(4 * (slot.stop - slot.start) for slot in slots)
    matrices = [slot.shape for slot in slots if len(slot.shape) == 2]
    grams = [4 * columns**2 for _, columns in matrices]
    decomposed = [4 * min(m, n) * (m + n + 1) for m, n in matrices]
    of_all = {"regmean": grams, "fisher": [4 * slot.stop - 4 * slot.start for slot in slots]}
    measured = (of_all | {"tsv_m": decomposed}).get(method, [])
    held = 2 * max(grams) if method == "regmean" else 2 * largest if method == "fisher" else 0
    assert after.shard - before.shard == sizes[1].directing >= 2 * 4 * largest + held
    assert after.mergers == (2 if measured else 0)
    least = 4 * base.partition.layout.numel + 3 * sum(measured)
    assert after.merger >= (PROCESS_BYTES + least if measured else 0)
    assert after.memory - before.memory == 2 * sizes[1].directing + after.mergers * after.merger
    cards = replace(MACHINE, gpus=2)
    one, other = (lay_out(size, cards, replace(choice, gpus=1)).card for size in sizes)
    assert other - one == max(sizes[1].measuring, 2 * sizes[1].directing)  # maybe in float64
    little = replace(MACHINE, memory=after.memory - 1)
    assert not lay_out(sizes[1], little, choice).mapped
    # Directions of adapters are whole.
    adapters = replace(sizes[1], adapters=(8, 8))
    assert adapters.vector_bytes("f32") == sizes[1].vector_bytes("f32")


def test_memory_that_is_too_small_is_refused_with_what_would_fit() -> None:
    with pytest.raises(SpecError) as refused:
        check_plan(JOB, replace(MACHINE, memory=12 * GIB), Choice(format="bf16"))
    message = str(refused.value)
    assert re.search(r"4 workers of [\d.]+ GiB, 4 shards of [\d.]+ GiB \(bf16", message)
    assert "12 GiB are free" in message
    ways = message.partition("what would fit: ")[2].split("; or ")
    assert "merge.task_vectors: int8 with cluster.workers: 1" in ways
    one = Choice(format="int8", workers=1)
    assert check_plan(JOB, replace(MACHINE, memory=12 * GIB), one).memory <= 12 * GIB


@pytest.mark.parametrize(
    ("pools", "machine", "choice", "said"),
    [
        (40 * GIB, {"memory": 48 * GIB}, {}, r"4 workers of [\d.]+ GiB \(10 GiB of it pools\)"),
        (40 * GIB, {"memory": 48 * GIB}, {}, r"half of each pool \(pool\.split: train\[:50%\]\)"),
        (
            *(0, {"memory": 13 * GIB // 2}, {"format": "int4", "workers": 1}),
            r"what would fit: .*2 such nodes \(cluster\.address\)",
        ),
        (0, {"disk": GIB}, {}, r"take 7\.5 GiB on the disk.*1 GiB are free"),
        (0, {"object_store": GIB}, {}, r"in the object store, and each node has 1 GiB"),
        (0, {"memory": GIB // 8}, {}, "use a larger machine"),
    ],
)
def test_what_is_too_small_is_named_with_what_would_fit(
    pools: int, machine: dict[str, int], choice: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        check_plan(replace(JOB, pool_bytes=pools), replace(MACHINE, **machine), Choice(**choice))


def test_twenty_vision_transformers_of_86_million_are_planned_within_16_gib() -> None:
    """ViT-B/32 on two cores with bfloat16 task vectors; in float32 they stay in their files."""
    block = {"q": (768, 768), "k": (768, 768), "v": (768, 768), "o": (768, 768)}
    block |= {"up": (3072, 768), "down": (768, 3072), "biases": (9 * 768,), "norms": (4 * 768,)}
    shapes = {f"m.layers.{n}.{name}": size for n in range(12) for name, size in block.items()}
    shapes |= {"patches": (768, 3072), "positions": (50, 768), "rest": (4 * 768,)}
    layout = build_layout(shapes)
    assert layout.numel == pytest.approx(87.4e6, rel=0.01)
    config = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    activations = activation_bytes(config | {"image_size": 224, "patch_size": 32}, 64, 4)
    job = JobSize(layout, 20, 7_690, 5, activations, pool_bytes=20 * 64 * 3 * 224 * 224)
    machine = ClusterSize(cpus=2, memory=16 * GIB)
    assert check_plan(job, machine, Choice(format="bf16")).memory <= 16 * GIB
    assert check_plan(job, machine, Choice()).mapped


@given(*(st.integers(1, n) for n in (512, 10**8, 64, 64)), st.integers(0, 10**11))
def test_whatever_is_planned_adds_up(
    tasks: int, parameters: int, groups: int, cpus: int, memory: int
) -> None:
    job = JobSize(build_layout({"w": (parameters,)}), tasks, 100, min(groups, tasks))
    plan = lay_out(job, ClusterSize(cpus=cpus, memory=memory), Choice())
    assert 1 <= plan.workers <= min(cpus, groups, tasks)
    assert 1 <= plan.shards <= cpus
    assert plan.mapped or plan.memory <= memory
    # More tasks on a worker cost what they own, and nothing else.
    twice = replace(job, tasks=2 * tasks)
    own = 28 * job.private * (-(-2 * tasks // plan.workers) - -(-tasks // plan.workers))
    assert worker_bytes(twice, plan.workers) - worker_bytes(job, plan.workers) == own


def test_the_object_store_holds_what_is_alive_and_activations_grow_with_the_model() -> None:
    small, large = 10_000, 100_000_000
    assert object_store_bytes(small, 8) > 10 * 4 * small
    assert 1.25 * 10 * 4 * large < object_store_bytes(large, 8) < 2 * 10 * 4 * large

    config = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
    config |= {"image_size": 32, "patch_size": 4}
    one = activation_bytes(config, 1, 2)
    assert one == 6 * 65 * (34 * 128 + 5 * 4 * 65)
    assert activation_bytes(config, 64, 4) == 128 * one
    assert activation_bytes({"conv": 3}, 64, 4) == 0


def test_this_machine_has_memory_and_a_disk(tmp_path: Path) -> None:
    assert 2**20 < available_memory() < 2**63
    assert free_disk(tmp_path / "not" / "yet") == free_disk(tmp_path)


def test_pools_are_known_from_headers(tiny: TinyZoo, tmp_path: Path) -> None:
    """As the workers then hold them, or a little more; nothing of them is read."""
    spec = tiny.spec(tmp_path / "store")
    base = load_base_model(spec)
    known = base.partition.module.config
    planned = pool_bytes(spec, known.to_dict() | {"num_labels": known.num_labels})
    workers = WorkerPool(Worker, InProcessBackend(1), spec, base)
    workers.check()
    hosted = workers._workers[0]._member.result()._checked.values()  # type: ignore[attr-defined]
    pools = [pool for task in hosted for pool in (task.pool, task.test) if pool is not None]
    held = sum(tensor.nbytes for pool in pools for tensor in pool.inputs.values())
    assert held <= planned < 1.1 * held
    assert make_plan(spec, base, ClusterSize(cpus=1, memory=64 * GIB)).pools == planned
    assert pool_bytes(spec, {}) > 0  # of a model that tells nothing, by the shapes in the files


def test_texts_and_folders_of_images_are_counted_too(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n' * 1000)
    folder = tmp_path / "images" / "train" / "cat"
    folder.mkdir(parents=True)
    for number in range(10):
        (folder / f"{number}.png").write_bytes(b"not read")
    texts = extent(DataSource(str(tmp_path / "texts.jsonl")))
    images = extent(DataSource(str(tmp_path / "images"), split="train[:50%]"))
    assert (texts.examples, texts.file_bytes) == (None, 14_000)
    assert (images.examples, images.file_bytes) == (5, 80)
    assert extent(DataSource("hf://org/name")).examples == 0
    (tmp_path / "broken.npz").write_bytes(b"not an npz")
    assert extent(DataSource(str(tmp_path / "broken.npz"))).examples is None


def test_a_job_that_cannot_fit_is_refused_before_anything_starts(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    spec = tiny.spec(tmp_path / "store")
    base = load_base_model(spec)
    with pytest.raises(SpecError, match="the job does not fit: 1 worker of"):
        make_plan(spec, base, ClusterSize(cpus=2, memory=2**20))

    backend = InProcessBackend(1, capacity=ClusterSize(cpus=1, memory=2**20))
    with pytest.raises(SpecError, match="does not fit"):
        WorkerPool(Worker, backend, spec, base)
    backend.close()
    assert not backend._members
    assert not (tmp_path / "store").exists()
