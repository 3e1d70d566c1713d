"""Exports for servers: PEFT adapters over a plain backbone, and ONNX files."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, ViTForImageClassification

import tintray
from tests import peft_models, sorts
from tests import tiny_models as tiny
from tests.answers import call
from tests.conftest import Published
from tests.sorts import SORTS, make_zoo
from tintray.errors import InputError
from tintray.handles import Merge
from tintray.jobs import api
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.runs import export as exports
from tintray.models.calling import answer

peft = pytest.importorskip("peft")
LLAMA = tiny.LLAMA | {"num_hidden_layers": 3, "hidden_size": 32, "head_dim": 16}
SERVED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
"""Layers of a Llama that vLLM and LoRAX both adapt."""


def published_sort(name: str, folder: Path) -> Merge:
    """A merge of one of the sorts."""
    sort = SORTS[name]
    spec = parse_spec(sort.job(make_zoo(sort.zoo, folder / "zoo"), folder / "store"))
    return tintray.load(api.run(spec).url)


def check_served(folder: Path, layers: int) -> dict[str, Any]:
    """An adapter is one that vLLM's and LoRAX's loaders take; its configuration.

    vLLM (lora/peft_helper.py, lora/lora_model.py): no modules_to_save, no DoRA, tensors called
    lora_A or lora_B alone, their modules among those that it adapts, r at most max_lora_rank, of
    1, 8, 16, 32, 64, 128, 256, 320, 512. LoRAX (adapters/lora.py): a kind of layer is read only if
    every layer of the model has factors of it, all of one rank.
    """
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] in (8, 16, 32, 64, 128, 256, 512)
    assert not config["modules_to_save"]
    assert not config.get("rank_pattern")
    assert not config.get("use_dora")
    assert (config["bias"], config["lora_bias"]) == ("none", False)
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key) for key in tensors]
    assert all(names)
    paths = {found.group(1) for found in names if found}
    kinds = {path.rpartition(".")[2] for path in paths}
    assert kinds <= SERVED
    assert set(config["target_modules"]) == kinds
    for kind in kinds - {"lm_head"}:
        found = {path.split(".")[2] for path in paths if path.endswith(kind)}
        assert found == {str(n) for n in range(layers)}
    for key, tensor in tensors.items():
        assert tensor.shape[0 if "lora_A" in key else 1] == config["r"]
    return config


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_is_written_as_vllm_and_lorax_read_it(tied: bool, tmp_path: Path) -> None:
    """A tint of rank 2 on one block is exact; a head of its own is cut to the rank."""
    config = LLAMA | {"tie_word_embeddings": tied}
    sorts.texts(tmp_path, lambda _: tiny.model("LlamaForCausalLM", config))
    spec = tiny.job(
        tmp_path,
        dict.fromkeys(("one", "two"), "language_modelling"),
        tint={"sites": [{"site": "model.layers.1.mlp", "rank": 2}]},
        fit={"rounds": 2},
    )
    merge = tintray.load(api.run(spec).url)
    found = merge.export_peft(tmp_path / "peft", rank=None if tied else 8)
    assert (found.exact, found.mixed, found.rank) == (tied, True, 8)
    for task in found.tasks:
        written = check_served(Path(found.path) / task.path, layers=3)
        assert ("lm_head" in written["target_modules"]) is not tied
        assert (task.agreement is None) is tied
    if tied:
        peft_models.check(merge, found, tiny.encoded(tiny.sentences(3, 5), merge.processor("one")))
    folder = Path(found.path)
    assert (folder / "base" / "tokenizer.json").is_file()
    card = (folder / "README.md").read_text()
    assert "--lora-modules one=adapters/one two=adapters/two" in card
    assert "--max-lora-rank 8" in card


def test_what_a_rank_loses_is_told(tmp_path: Path) -> None:
    """The agreement is that of PEFT's own answers on the pool; more rank keeps more."""
    merge = published_sort("block", tmp_path)
    found = merge.export_peft(tmp_path / "peft", rank=1)
    assert (found.exact, found.mixed) == (False, True)
    model = peft_models.load(merge, found)
    for task in found.tasks:
        entry, module = merge.task(task.task), merge.for_task(task.task)
        pool = exports._some(merge, 512, task.task, module)
        model.set_adapter(task.task)
        with torch.inference_mode():
            batch = next(pool.batches(len(pool)))
            ours = answer(model, batch)[:, : entry.classes].argmax(1)
            theirs = answer(module, batch).argmax(1)
        assert task.agreement == pytest.approx((ours == theirs).float().mean().item())
    full = merge.export_peft(tmp_path / "full", rank=16)
    changed = [model, peft_models.load(merge, full)]
    inputs = {"pixel_values": torch.randn(16, 3, 8, 8)}
    with torch.inference_mode():
        for one in changed:
            one.set_adapter("one")
        far, near = (
            (answer(one, inputs)[:, :3] - answer(merge.for_task("one"), inputs)).abs().mean()
            for one in changed
        )
    assert near < far
    Path(merge.manifest.tasks[0].pool.path).unlink()
    again = merge.export_peft(tmp_path / "again", rank=1)
    assert again.tasks[0].agreement is None
    assert "what is lost of task 'one' was not measured" in again.notices[-1]


def test_one_task_alone_and_the_names_of_its_classes(published: Published, tmp_path: Path) -> None:
    merge = tintray.load(published.summary.url)
    found = merge.export_peft(tmp_path / "peft", ["two"])
    assert [task.task for task in found.tasks] == ["two"]
    adapter = tmp_path / "peft" / "adapters" / "two"
    config = AutoConfig.from_pretrained(adapter)
    assert config.id2label == merge.for_task("two").config.id2label
    base = ViTForImageClassification.from_pretrained(tmp_path / "peft" / "base")
    assert type(peft.PeftModel.from_pretrained(base, adapter)).__name__ == "PeftModel"
    assert (tmp_path / "peft" / "base" / "preprocessor_config.json").is_file()


def test_refusals(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ("--store", published.spec.store, "--catalog", published.spec.catalog)

    def refused(*words: str) -> str:
        found = call("export", "tiny", tmp_path / "out", *words, *place)
        assert not (tmp_path / "out").exists()
        return found.sentence if found.err.count("\n") == 1 else found.err

    assert "expected a power of two from 1 to 512" in refused("--peft", "--rank", "3")
    assert "give both" in refused("--rank", "8")
    assert "give one of them" in refused("--peft", "--onnx")
    assert "did you mean" in refused("--peft", "--task", "fvie")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "tintray.errors.find_spec",
        lambda name: None if name == "onnxruntime" else found(name),
    )
    assert "pip install 'tintray[onnx]'" in refused("--onnx")


def test_tasks_of_different_classes_have_no_common_base(tmp_path: Path) -> None:
    merge = published_sort("head", tmp_path)
    other = published_sort("batch norm", tmp_path / "other")
    modules = {"one": merge.for_task("one"), "two": other.for_task("two")}
    merge.exportable = modules.__getitem__  # type: ignore[method-assign]
    with pytest.raises(InputError, match="are of different classes"):
        merge.export_peft(tmp_path / "peft")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["low rank", "lora"])
def test_an_onnx_file_answers_as_the_merge_does(name: str, tmp_path: Path) -> None:
    """For batches and texts of other sizes than those that it was written with."""
    onnxruntime = pytest.importorskip("onnxruntime")
    merge = published_sort(name, tmp_path)
    found = merge.export_onnx(tmp_path / "onnx", ["two"])
    folder = tmp_path / "onnx" / "two"
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["README.md", "two"]
    assert found.tasks[0].difference is not None
    assert found.tasks[0].difference <= 1e-4
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    batch = {"pixel_values": torch.randn(5, 3, 8, 8)}
    if name == "lora":
        words = tiny.sentences(5, 9, longest=12)
        batch = tiny.encoded(words, merge.processor("two", text=True))
    given = {one.name: batch[one.name].numpy() for one in session.get_inputs()}
    (logits,) = session.run(["logits"], given)
    assert torch.allclose(torch.from_numpy(logits), merge.predict("two", batch), atol=1e-4)


def test_an_onnx_file_that_answers_otherwise_is_not_kept(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("tintray.published.onnx_export.CLOSE", 0.0)
    merge = tintray.load(published.summary.url)
    with pytest.raises(tintray.errors.FitError, match="answers otherwise than the merge"):
        merge.export_onnx(tmp_path / "onnx", ["two"])
    assert not (tmp_path / "onnx").exists()
