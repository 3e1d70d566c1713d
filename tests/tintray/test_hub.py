"""Models of the hub without safetensors are read for their weights alone, and converted once."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_zoo import TinyZoo
from tintray.checkpoints import hub
from tintray.checkpoints.model_folder import open_model_folder
from tintray.errors import CheckpointError
from tintray.models.loading import load_expert


@pytest.fixture
def snapshot(tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the hub's client leaves it, with weights in the old form."""
    import huggingface_hub

    folder = tiny.copy(tmp_path / "zoo").folder / "five"
    target = tmp_path / "hub" / "models--org--five" / "snapshots" / "0123abc"
    target.parent.mkdir(parents=True)
    folder.rename(target)
    weights = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    tied = weights | {"again": weights["classifier.weight"]}
    torch.save(tied, target / "pytorch_model.bin")

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        assert hub_id == "org/five"
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return target


def test_old_weights_are_converted_once(
    snapshot: Path, tiny: TinyZoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model_folder("org/five")
    assert opened.folder != snapshot
    plain = load_expert(open_model_folder(tiny.folder / "five")).state_dict()
    found = load_expert(opened).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    assert "again" not in load_file(opened.weights[0])  # it shares memory with another
    assert [path.name for path in opened.preprocessor_files] == ["preprocessor_config.json"]
    monkeypatch.setattr(torch, "load", None)  # nothing is read a second time
    assert open_model_folder("org/five").folder == opened.folder


def test_a_pickle_that_is_more_than_weights_is_refused_and_runs_nothing(
    snapshot: Path, tmp_path: Path
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "harm"),)  # type: ignore[return-value]

    (snapshot / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Harm()}))
    with pytest.raises(
        CheckpointError, match=r"base: .*pytorch_model\.bin holds more than weights"
    ):
        hub.download("org/five", "base")
    assert not (tmp_path / "harm").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
