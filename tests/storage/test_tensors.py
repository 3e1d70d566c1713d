"""Reading one tensor of a large artifact: little is read, and what is read is verified."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save
from tintray.storage.artifacts import ArtifactStore
from tintray.storage.blobs import BLOCK, BlobRef, blob_key, put_blob, read_blob
from tintray.storage.tensors import TensorFile

from tintray.errors import IntegrityError, NotFoundError


class Counting:
    """A store that counts the bytes that are read from it."""

    def __init__(self, store: ArtifactStore):
        self.store = store
        self.url = store.url
        self.count = 0

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        data = self.store.get(key, start, stop)
        self.count += len(data)
        return data


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    layers = {f"layer.{n}": random.standard_normal((512, 512), np.float32) for n in range(24)}
    return layers | {"scalar": np.array(3, np.int64), "empty": np.zeros((0, 4), np.float16)}


@pytest.fixture
def blob(store: ArtifactStore, tensors: dict[str, np.ndarray]) -> BlobRef:
    return put_blob(store, save(tensors, {"task": "mnist"}))


def test_each_tensor_is_what_was_saved(
    store: ArtifactStore, blob: BlobRef, tensors: dict[str, np.ndarray]
) -> None:
    file = TensorFile(partial(read_blob, store, blob), "it")
    assert set(file) == set(tensors)
    assert file.metadata == {"task": "mnist"}
    for name in ("layer.0", "layer.23", "scalar", "empty"):
        assert file[name].shape == tensors[name].shape
        assert file.read(name) == tensors[name].tobytes()
    assert (file["layer.0"].dtype, file["scalar"].dtype) == ("F32", "I64")
    with pytest.raises(NotFoundError, match=r"no tensor 'skalar'; did you mean 'scalar'\?"):
        file.read("skalar")


def test_one_tensor_costs_its_blocks_and_not_the_file(store: ArtifactStore, blob: BlobRef) -> None:
    counting = Counting(store)
    TensorFile(partial(read_blob, counting, blob), "it").read("layer.7")
    assert counting.count < 4 * BLOCK < blob.size / 5


PARTS = [
    (0, 1),
    (BLOCK - 1, BLOCK + 1),
    (BLOCK, 2 * BLOCK),
    (5, 3 * BLOCK),
    (0, 10**9),
    (10**9, 2**40),
]


def test_a_part_of_a_blob_is_a_slice(store: ArtifactStore) -> None:
    data = np.random.default_rng(1).bytes(3 * BLOCK + 17)
    large, small = put_blob(store, data), put_blob(store, data[:1000])
    for start, stop in PARTS:
        assert read_blob(store, large, start, stop) == data[start:stop], (start, stop)
        assert read_blob(store, small, start, stop) == data[:1000][start:stop], (start, stop)


def test_without_the_record_of_its_blocks_a_part_is_read_all_the_same(
    store: ArtifactStore,
) -> None:
    """A writer that was killed may have left a blob without it; writing again mends that."""
    data = np.random.default_rng(1).bytes(2 * BLOCK + 17)
    ref = put_blob(store, data)
    record = f"{blob_key(ref.sha256)}.blocks"
    store.delete(record)
    assert read_blob(store, ref, 5, BLOCK + 5) == data[5 : BLOCK + 5]
    assert put_blob(store, data) == ref
    assert store.exists(record)


def test_an_altered_byte_is_found_in_the_part_that_is_read(
    store: ArtifactStore, blob: BlobRef
) -> None:
    key = blob_key(blob.sha256)
    file = TensorFile(partial(read_blob, store, blob), "it")
    entry = file["layer.20"]
    altered = bytearray(store.get(key))
    altered[entry.start] ^= 1
    store.put(key, bytes(altered), overwrite=True)
    with pytest.raises(IntegrityError, match=f"{key} in .* altered between bytes"):
        file.read("layer.20")
    file.read("layer.3")
    store.put(key, bytes(altered[: entry.start]), overwrite=True)
    with pytest.raises(IntegrityError, match=f"{key} in .* truncated"):
        file.read("layer.20")
    record = store.get(f"{key}.blocks").replace(b"a", b"b", 1)
    store.put(f"{key}.blocks", record, overwrite=True)
    with pytest.raises(IntegrityError, match=r"\.blocks in .* altered"):
        file.read("layer.3")


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 64, b"\2\0\0\0\0\0\0\0[]", b"\0" * 8])
def test_what_is_no_safetensors_file_is_named(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="it is no safetensors file"):
        TensorFile(lambda start, stop: data[start:stop], "it")


def test_a_truncated_file_is_named() -> None:
    data = save({"a": np.zeros(100, np.float32)})[:-1]
    file = TensorFile(lambda start, stop: data[start:stop], "it")
    with pytest.raises(IntegrityError, match="it is truncated: tensor 'a' should have 400 bytes"):
        file.read("a")


def test_a_long_header_is_read_in_two_reads() -> None:
    data = save({f"tensor.{n:05}": np.full(1, n, np.float32) for n in range(2000)})
    reads: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> bytes:
        reads.append((start, stop))
        return data[start:stop]

    file = TensorFile(read, "it")
    assert len(file) == 2000
    assert len(reads) == 2
    assert np.frombuffer(file.read("tensor.01999"), np.float32) == 1999
