"""A shard: T from verified blobs, sums in the order given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.errors import IntegrityError, NotFoundError
from tintray.jobs.engine import plan
from tintray.jobs.engine.arrays import Floats
from tintray.jobs.engine.in_process import InProcessBackend
from tintray.jobs.engine.shards import Shard, ShardConfig, Shards
from tintray.numerics.layout import Layout, build_layout
from tintray.storage.artifacts.blobs import BlobRef, blob_key, put_blob
from tintray.storage.artifacts.store import open_store

LAYOUT: Layout = build_layout({"a.x": (3, 2), "a.y": (4,)})


def blob(store: Path, seed: int) -> BlobRef:
    random = torch.Generator().manual_seed(seed)
    tensors = {"a.x": torch.randn(3, 2, generator=random), "a.y": torch.randn(4, generator=random)}
    # A tensor that the layout leaves out, as a tinted block's are: it is not read.
    extra = {"a.z": torch.full((2,), torch.nan)}
    return put_blob(open_store(str(store)), tensors_as_bytes(tensors | extra))


def order(store: Path, base: BlobRef | None = None, **options: Any) -> ShardConfig:
    return ShardConfig(str(store), base or blob(store, 0), LAYOUT, **options)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    shard = Shard(order(tmp_path), range(2))
    shard.load(["p", "q"], [blob(tmp_path, 1), blob(tmp_path, 2)])
    return shard


def test_gradients_are_summed_in_the_order_given(shard: Shard) -> None:
    """The order of a floating-point sum shows: it must be the caller's, for every cluster."""
    parts = [np.full(10, value, dtype=np.float32) for value in (1e8, 1.0, -1e8)]
    for part in parts:
        part.flags.writeable = False  # as arrays from an object store are
    expected = torch.full((10,), 1e8) + torch.full((10,), 1.0) + torch.full((10,), -1e8)
    assert np.array_equal(shard.project(0.0, *parts), shard.project(0.0, expected.numpy()))
    assert (shard.project(0.0, *parts) != shard.project(0.0, parts[0], parts[2], parts[1])).any()
    assert [part[0] for part in parts] == [np.float32(1e8), 1.0, np.float32(-1e8)]


def test_merge_has_no_memory_and_projection_of_one_unit_is_a_dot_product(shard: Shard) -> None:
    one = np.full((2, 2), 0.3, dtype=np.float32)
    first = shard.merge(one)
    shard.merge(np.ones((2, 2), dtype=np.float32))
    assert np.array_equal(shard.merge(one), first)
    assert first.shape == (10,)
    assert np.isfinite(first).all()
    gradient = np.zeros(10, dtype=np.float32)
    gradient[6:] = [1.0, 2.0, 3.0, 4.0]
    random = torch.Generator().manual_seed(2)
    torch.randn(3, 2, generator=random)
    vector = torch.randn(4, generator=random)
    found = shard.project(0.0, gradient)
    assert found[:, 0].tolist() == [0.0, 0.0]
    assert found[1, 1] == pytest.approx(float(vector @ torch.tensor([1.0, 2.0, 3.0, 4.0])))


def test_a_damaged_or_missing_vector_is_named(tmp_path: Path) -> None:
    base, good, bad = (blob(tmp_path, seed) for seed in range(3))
    path = tmp_path / blob_key(bad.sha256)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=bad.sha256):
        Shard(order(tmp_path, base), range(2)).load(["p", "q"], [good, bad])
    path.unlink()
    with pytest.raises(NotFoundError, match=bad.sha256):
        Shard(order(tmp_path, base), range(2)).load(["p", "q"], [good, bad])


def test_an_addition_that_fails_is_told_by_the_projection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large gradients are added one by one, and nobody waits for each: no wrong sum may go on."""
    monkeypatch.setattr(plan, "SUMMED_BYTES", 0)
    backend = InProcessBackend(1)
    spread = Shards(backend, order(tmp_path), 1)
    backend.get(spread.load(["p", "q"], [blob(tmp_path, 1), blob(tmp_path, 2)]))

    def projected(*lengths: int) -> Floats:
        groups = [[backend.put(np.ones(length, np.float32))] for length in lengths]
        return backend.get(spread.project(groups))[0]

    assert np.array_equal(2 * projected(10), projected(10, 10))
    with pytest.raises(RuntimeError, match="must match"):
        projected(11, 10)


def test_how_many_gradients_are_taken_at_once_changes_no_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, calls = InProcessBackend(1), []
    spread = Shards(backend, order(tmp_path), 1)
    backend.get(spread.load(["p", "q"], [blob(tmp_path, 1), blob(tmp_path, 2)]))
    alone = Shard.add

    def add(shard: Shard, *gradients: Any) -> None:
        calls.append(len(gradients))
        alone(shard, *gradients)

    monkeypatch.setattr(Shard, "add", add)
    random = np.random.default_rng(0)
    gradients = [1e4 ** (n % 3) * random.standard_normal(10).astype(np.float32) for n in range(5)]
    sums, taken = [], []
    for summed in (0, 2 * gradients[0].nbytes, 2**20):
        monkeypatch.setattr(plan, "SUMMED_BYTES", summed)
        calls.clear()
        given = [[backend.put(gradient)] for gradient in gradients]
        sums.append(backend.get(spread.project(given))[0])
        taken.append(calls.copy())
    assert np.array_equal(sums[0], sums[1])
    assert np.array_equal(sums[0], sums[2])
    assert taken == [[1, 1, 1, 1, 1], [2, 1, 2], [5]]


@pytest.mark.parametrize("stretch", [range(2), range(1, 2)])
def test_rows_are_in_the_order_given_wherever_a_shard_begins_to_fetch(
    tmp_path: Path, stretch: range
) -> None:
    vectors = [blob(tmp_path, seed) for seed in range(1, 8)]
    shard = Shard(order(tmp_path), stretch)
    shard.load([f"t{n}" for n in range(7)], vectors)
    zero = np.asarray(shard.merge(np.zeros((7, len(stretch)), np.float32)))
    for n, ref in enumerate(vectors):
        chosen = np.zeros((7, len(stretch)), np.float32)
        chosen[n] = 1
        tensors = load_file(tmp_path / blob_key(ref.sha256))
        expected = np.concatenate(
            [tensors[LAYOUT.slots[slot].name].flatten() for slot in stretch], dtype=np.float32
        )
        assert np.allclose(np.asarray(shard.merge(chosen)) - zero, expected, atol=1e-6)
