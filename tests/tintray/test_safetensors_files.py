"""One reader of safetensors headers: what the library refuses, nothing else gets past it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tintray.checkpoints.model_folder import open_model_folder
from tintray.checkpoints.safetensors_files import tensors_in
from tintray.errors import CheckpointError
from tintray.merging.files.tensor_files import TensorFiles

BODY = bytes(range(32))


def write(path: Path, header: Any, body: bytes = BODY) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES: dict[str, Any] = {
    "beyond the end": {"a": entry([4], [0, 16]), "b": entry([8], [16, 48])},
    "before the start": {"a": entry([4], [-16, 0]), "b": entry([8], [0, 32])},
    "across another": {"a": entry([4], [8, 24]), "b": entry([4], [16, 32])},
    "one span for two": {"a": entry([8], [0, 32]), "b": entry([8], [0, 32])},
    "a span too short": {"a": entry([4], [0, 8]), "b": entry([6], [8, 32])},
    "a huge shape": {"a": entry([4], [0, 16]), "b": entry([10**11], [16, 32])},
    "a product that overflows": {"a": entry([2**40, 2**40], [0, 32])},
    "a hole": {"a": entry([4], [0, 16]), "b": entry([3], [20, 32])},
    "bytes left over": {"a": entry([4], [0, 16])},
    "no offsets": {"a": entry([8], [])},
    "three offsets": {"a": entry([8], [0, 16, 32])},
    "a text for a shape": {"a": entry("8", [0, 32])},
    "a negative shape": {"a": entry([-8], [0, 32])},
    "an unknown type": {"a": entry([8], [0, 32], "F33")},
    "a type of half a byte": {"a": entry([64], [0, 32], "F4")},
    "no object": [1, 2],
    "no JSON": b"{",
    "deep JSON": b"[" * 50_000,
}


@pytest.mark.parametrize("header", LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_refused_by_every_way_in(tmp_path: Path, header: Any) -> None:
    path = write(tmp_path / "model.safetensors", header)
    (tmp_path / "config.json").write_text("{}")
    for opened in (
        lambda: TensorFiles([path], "expert 'a'"),
        lambda: open_model_folder(tmp_path, role="expert 'a'"),
    ):
        with pytest.raises(CheckpointError, match=r"^expert 'a': .*safetensors") as caught:
            opened()
        assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused_and_a_tensor_in_two(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/dev/null")):
        with pytest.raises(CheckpointError, match="safetensors file"):
            tensors_in(path, "the base")
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in (one, other):
        save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="'w' is in two files"):
        TensorFiles([one, other], "the base")


numbers = st.integers(-4, 40)
entries = st.builds(
    entry,
    st.lists(st.integers(0, 9), max_size=2),
    st.tuples(numbers, numbers),
    st.sampled_from(["F32", "F16", "U8", "I64"]),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), entries, max_size=3), st.integers(0, 40))
def test_what_is_accepted_is_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], size: int
) -> None:
    body = bytes(n % 3 for n in range(size))
    path = write(tmp_path_factory.mktemp("lie") / "model.safetensors", header, body)
    try:
        with safe_open(path, framework="pt") as file:
            expected = {name: file.get_tensor(name) for name in file.offset_keys()}
    except (SafetensorError, OSError):
        with pytest.raises(CheckpointError):
            TensorFiles([path], "it")
        return
    with TensorFiles([path], "it") as files:
        assert files.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            found = files.whole(name)
            assert found.dtype == tensor.dtype
            assert found.shape == tensor.shape
            assert found.numpy().tobytes() == tensor.numpy().tobytes()
