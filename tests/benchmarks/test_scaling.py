"""The benchmark of many tasks runs the members of a job, with what they would read made up."""

from __future__ import annotations

import pytest
import torch

from benchmarks.round import moved
from benchmarks.scaling import BATCH, ZOO, MadeShard, MadeWorker, measure, split
from tintray.jobs.engine.shards import ShardConfig
from tintray.storage.artifacts.blobs import BlobRef

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 16, "image_size": 16, "patch_size": 8}


def test_its_members_run_a_round() -> None:
    layout = split(SHAPE).layout
    shard = MadeShard(ShardConfig("", BlobRef("0" * 64, 0), layout), range(len(layout.slots)))
    shard.load(["one", "two"], [])
    worker = MadeWorker(SHAPE, {0: ["one", "two"]})
    worker.begin([slice(0, layout.numel)])
    theta = shard.merge(torch.full((2, len(layout.slots)), 0.01).numpy())
    (gradient,), metrics = worker.step(0, 0, 1e-3, None, theta)
    assert shard.project(0.0, gradient).shape == (2, len(layout.slots))
    assert set(metrics) == {"one", "two"}
    assert worker.bare() == 2 * BATCH
    assert worker.preparing() > 0
    assert worker.pool_bytes() == 2 * 64 * 3 * 16 * 16


@pytest.mark.slow
def test_members_that_exchange_tensors_directly_run_rounds() -> None:
    """As on a GPU each, with gloo in the place of nccl."""
    found = measure(SHAPE, 4, 1, workers=2, transport="gloo")
    assert found["round"] > 0
    assert found["bare"] > 0


def test_bytes_that_are_moved_are_counted() -> None:
    """Task vectors in float32 are read as they are; others are written in float32 first."""
    for format, copies in (("f32", 0), ("bf16", 2)):
        found, least = moved(8, format)
        numbers = 8 * split(ZOO).layout.numel
        assert found == pytest.approx(least + 2 * copies * 4 * numbers, rel=0.2)
