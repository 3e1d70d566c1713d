"""What is refused of a model folder before any of its tensors is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_zoo import TinyZoo
from tintray.checkpoints.model_folder import open_model_folder
from tintray.checkpoints.tensors import Later, TensorFile, tensors_as_bytes
from tintray.errors import CheckpointError

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny: TinyZoo, tmp_path: Path) -> Path:
    """An expert's folder, to be damaged."""
    return tiny.copy(tmp_path / "zoo").folder / "five"


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def part_missing(folder: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def other(change: Callable[[bytes], bytes], name: str = WEIGHTS) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


PICKLE = pickle.dumps({"classifier.weight": [1.0] * 400})
DAMAGES: list[tuple[Callable[[Path], object], list[str]]] = [
    (other(lambda data: data[:-100]), [WEIGHTS, "cut short", "copy it again"]),
    (other(lambda data: data + b"\0"), [WEIGHTS, "copy it again"]),
    (other(lambda _: PICKLE), [WEIGHTS, "not a safetensors file"]),
    (other(lambda _: b""), [WEIGHTS, "not a safetensors file"]),
    (other(lambda _: b"\xff" * 64), ["not a safetensors file"]),
    (pickled, ["pytorch_model.bin", "pickle", "save_pretrained"]),
    (part_missing, ["model-2.safetensors"]),
    (lambda folder: (folder / WEIGHTS).unlink(), ["has no model.safetensors"]),
    (lambda folder: (folder / "config.json").unlink(), ["has no config.json"]),
    (other(lambda _: b"{", "config.json"), ["config.json", "not valid JSON"]),
    (other(lambda _: b"[]", "config.json"), ["config.json", "JSON object"]),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_folder_is_refused_by_its_file(
    folder: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=r"^tasks\.five\.expert: ") as raised:
        open_model_folder(folder, role="tasks.five.expert")
    said = str(raised.value)
    assert [word for word in [str(folder), *words] if word not in said] == []


def test_a_folder_that_is_not_there_is_answered_with_the_nearest(tiny: TinyZoo) -> None:
    with pytest.raises(CheckpointError, match="did you mean 'three'"):
        open_model_folder(tiny.folder / "tree")
    with pytest.raises(CheckpointError, match="is a file; expected the folder"):
        open_model_folder(tiny.folder / "five.npz")


@pytest.mark.parametrize(
    "name", ["a b/c", "a//b/c", f"{'x' * 300}/y", "y/" + "x" * 300, "-/-", "a/b\0", "x" * 5000, ""]
)
def test_what_is_no_name_of_a_model_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"^x: "):
        open_model_folder(name, role="x")


def test_a_folder_may_be_a_url_and_in_parts(tiny: TinyZoo, folder: Path) -> None:
    from tintray.models.loading import load_expert

    whole = load_expert(open_model_folder(tiny.folder / "five")).state_dict()
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, of_file in parts.items():
        save_file({n: tensors[n] for n in of_file}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, of_file in parts.items() for name in of_file}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()
    checkpoint = open_model_folder(f"file://{folder}")
    assert [path.name for path in checkpoint.weights] == sorted(parts)
    found = load_expert(checkpoint).state_dict()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_digest_covers_all_that_an_output_depends_on(tiny: TinyZoo, folder: Path) -> None:
    first = open_model_folder(folder).digest()
    assert first == open_model_folder(tiny.folder / "five").digest()  # wherever it lies
    (folder / "README.md").write_text("a model card")
    assert open_model_folder(folder).digest() == first
    seen = {first}
    for name in ("config.json", "preprocessor_config.json"):
        other(lambda data: data + b"\n", name)(folder)
        seen.add(open_model_folder(folder).digest())
    other(lambda data: data[:-1] + bytes([data[-1] ^ 1]))(folder)
    seen.add(open_model_folder(folder).digest())
    assert len(seen) == 4


def test_a_file_of_tensors_is_written_a_tensor_at_a_time() -> None:
    """The bytes that safetensors itself gives, of every type, and of tensors made as they go."""
    random = torch.Generator().manual_seed(1)
    types = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]
    tensors = {f'a "{n}" é': torch.randn(3, n, generator=random) for n in range(4)}
    tensors |= {f"{dtype}": (9 * torch.rand(2, 5)).to(dtype) for dtype in (*types, torch.bool)}
    tensors["turned"], tensors["number"] = torch.randn(4, 6).t(), torch.tensor(3)
    made: list[str] = []

    def later(name: str) -> Later:
        def make() -> torch.Tensor:
            made.append(name)
            return tensors[name]

        return Later(tuple(tensors[name].shape), make, tensors[name].dtype)

    expected = tensors_as_bytes(tensors)
    for given in (tensors, {name: later(name) for name in tensors}):
        file = TensorFile(given)
        assert not made
        for _ in range(2):  # once to be hashed, once to be written
            assert b"".join(file) == expected
        assert file.size == len(expected)
    assert sorted(made) == sorted([*tensors, *tensors])
