"""A stranger's model folder: one model, no code, no more memory than it has weights for."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.modules import module as hooks

import tintray
from tests import tiny_models as tiny
from tintray.checkpoints.model_folder import open_model_folder
from tintray.checkpoints.processors import processor_in
from tintray.errors import CheckpointError
from tintray.models.loading import empty_module, load_expert

ROOT = Path(tintray.__file__).parents[1]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PART = "model-00001-of-00001.safetensors"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
VIT |= {"intermediate_size": 16, "image_size": 8, "patch_size": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of our own, to be damaged."""
    torch.manual_seed(0)
    module = transformers.ViTForImageClassification(
        transformers.ViTConfig(initializer_range=0.2, **VIT)
    )
    module.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def split(folder: Path, file: str = PART) -> None:
    """The weights in parts with an index, beside the single file."""
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors, folder / Path(file).name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, file)}
    (folder / INDEX).write_text(json.dumps(index))


FORMS: dict[str, Callable[[Path], object]] = {
    WEIGHTS: lambda folder: None,
    INDEX: split,
    ADAPTER_CONFIG: lambda folder: (folder / ADAPTER_CONFIG).write_text("{}"),
    ADAPTER: lambda folder: save_file({"a": torch.zeros(1)}, folder / ADAPTER),
}


@pytest.mark.parametrize(
    ("one", "other"),
    [(WEIGHTS, INDEX), (WEIGHTS, ADAPTER_CONFIG), (INDEX, ADAPTER_CONFIG), (INDEX, ADAPTER)],
)
def test_a_folder_of_two_models_is_refused_and_both_are_named(
    folder: Path, one: str, other: str
) -> None:
    base = open_model_folder(folder)
    FORMS[one](folder)
    FORMS[other](folder)
    if WEIGHTS not in (one, other):
        (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=rf"^x: .* holds two models, {one} and {other}; exp"):
        open_model_folder(folder, role="x", base=base)


def test_weights_in_other_formats_do_not_matter(folder: Path) -> None:
    expected = load_expert(open_model_folder(folder)).state_dict()
    digest = open_model_folder(folder).digest()
    for name in ("pytorch_model.bin", "tf_model.h5", "pytorch_model.bin.index.json", "x.gguf"):
        (folder / name).write_bytes(b"of another model")
    other = {name: tensor + 1 for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(other, folder / "other.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", transformers_weights="other.safetensors")
    found = load_expert(open_model_folder(folder)).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    change(folder / "config.json", transformers_weights=None)
    assert digest != open_model_folder(folder).digest()  # of the configuration


def elsewhere(folder: Path) -> None:
    split(folder, "../other.safetensors")
    (folder / "other.safetensors").rename(folder.parent / "other.safetensors")


def a_link(folder: Path) -> None:
    split(folder)
    (folder / PART).rename(folder.parent / "secret")
    (folder / PART).symlink_to(folder.parent / "secret")


def one_tensor_more_or_less(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        split(folder)
        index = json.loads((folder / INDEX).read_text())
        if index["weight_map"].pop(name, None) is None:
            index["weight_map"][name] = PART
        (folder / INDEX).write_text(json.dumps(index))

    return damage


INDICES: list[Any] = [[], {}, {"weight_map": []}]
INDICES += [{"weight_map": {"a": file}} for file in (5, "", "b\0.safetensors", "pytorch.bin")]


@pytest.mark.parametrize(
    "damage",
    [
        *(elsewhere, a_link, lambda folder: split(folder, f"{folder.parent}/other.safetensors")),
        *map(one_tensor_more_or_less, ("vit.more", "classifier.bias")),
        *(lambda folder, index=i: (folder / INDEX).write_text(json.dumps(index)) for i in INDICES),
    ],
)
def test_an_index_names_its_own_parts_and_nothing_else(
    folder: Path, damage: Callable[[Path], object]
) -> None:
    damage(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"^x: .*model"):
        open_model_folder(folder, role="x")


@pytest.mark.parametrize(
    "name", [WEIGHTS, "config.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    secret = folder.parent / "secret"
    (folder / name).rename(secret) if (folder / name).exists() else secret.write_text("{}")
    (folder / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match=rf"^x: .*{name} is a link to .*secret"):
        open_model_folder(folder, role="x")


def test_a_file_that_changes_after_it_was_looked_at_is_not_used(folder: Path) -> None:
    checkpoint = open_model_folder(folder)
    tensors = load_file(folder / WEIGHTS)
    save_file({n: t + 1 for n, t in tensors.items()}, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(folder / WEIGHTS)
    for use in (checkpoint.digest, lambda: load_expert(checkpoint)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors has changed since"):
            use()


def test_buffers_of_old_versions_are_ignored(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    old = {
        "vit.embeddings.position_ids": torch.arange(5)[None],
        "vit.encoder.layer.0.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file(tensors | old, folder / WEIGHTS, metadata={"format": "pt"})
    assert load_expert(open_model_folder(folder)).state_dict().keys().isdisjoint(old)


PROMISES = {"num_hidden_layers": 100_000, "num_attention_heads": 10**30, "num_labels": 10**9}
PROMISES |= {"hidden_size": 2**24, "intermediate_size": 10**9, "image_size": 10**6}


@pytest.mark.parametrize(("field", "value"), PROMISES.items(), ids=PROMISES.keys())
def test_a_configuration_that_promises_too_much_is_refused(
    folder: Path, field: str, value: int
) -> None:
    change(folder / "config.json", **{field: value, "id2label": None, "label2id": None})
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"config\.json|model "):
        load_expert(open_model_folder(folder), "x")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        empty_module(config, numbers=5_000)
    assert not hooks._global_parameter_registration_hooks


HOSTILE = (None, -1, 0, 10**9, 10**400, 1.5, float("nan"), "x", [], [1], {}, {"a": []}, True)
FIELDS = (
    *("hidden_size", "num_hidden_layers", "hidden_act", "image_size", "layer_norm_eps"),
    *("id2label", "label2id", "architectures", "model_type", "dtype", "qkv_bias", "auto_map"),
    *("quantization_config", "per_layer_config", "attn_implementation", "_name_or_path"),
)


@pytest.mark.parametrize("field", FIELDS)
def test_whatever_a_field_holds_is_read_or_refused(folder: Path, field: str) -> None:
    original = json.loads((folder / "config.json").read_text())
    for value in HOSTILE:
        (folder / "config.json").write_text(json.dumps(original | {field: value}))
        try:
            load_expert(open_model_folder(folder, role="x"), "x")
        except CheckpointError as error:
            assert str(error).startswith("x: ")


CODE = """
from pathlib import Path
Path(__file__).with_name('RAN').touch()
class Own:
    @classmethod
    def from_pretrained(cls, *a, **k): return cls()
"""


@pytest.mark.parametrize("text", [True, False])
def test_code_beside_a_processor_is_never_run_and_never_asked_about(
    tmp_path: Path, text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("nobody is asked")

    monkeypatch.setattr("builtins.input", asked)
    (tmp_path / "own.py").write_text(CODE)
    name, auto = ("tokenizer", "AutoTokenizer") if text else ("preprocessor", "AutoImageProcessor")
    own = ["own.Own", None] if text else "own.Own"
    fields = {"auto_map": {auto: own}, "tokenizer_class": "Own", "image_processor_type": "Own"}
    (tmp_path / f"{name}_config.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"^x: .* has no usable (tokenizer|preprocessor)"):
        processor_in(tmp_path, "x", text=text)
    assert not (tmp_path / "RAN").exists()


def test_names_and_numbers_in_a_tokenizer_are_looked_at_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The tokenizers library prints names that it does not know, and makes tables of any size."""
    tiny.tokenizer().save_pretrained(tmp_path)
    processor_in(tmp_path, "x", text=True)
    path, options = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    good = path.read_text()
    for number in (2**31, -1, 1e300):
        known = json.loads(good)
        known["model"]["vocab"]["w3"] = number
        path.write_text(json.dumps(known))
        with pytest.raises(CheckpointError, match="a token has the number"):
            processor_in(tmp_path, "x", text=True)
    known = json.loads(good)
    known["added_tokens"][0]["\x1b[31mred"] = 1
    path.write_text(json.dumps(known))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has an option called"):
        processor_in(tmp_path, "x", text=True)
    path.write_text(good)
    change(options, added_tokens_decoder={"0": {"content": "[PAD]", "\x1b[31mred": 1}})
    with pytest.raises(CheckpointError, match=r"_config\.json has an option called"):
        processor_in(tmp_path, "x", text=True)
    assert "\x1b" not in "".join(capfd.readouterr())


def test_code_beside_a_model_is_never_run(folder: Path) -> None:
    (folder / "own.py").write_text(CODE)
    change(folder / "config.json", auto_map={"AutoModel": "own.Own"}, architectures=["Own"])
    with pytest.raises(CheckpointError, match=r"architectures=\['Own'\]; .*code .* is never run"):
        load_expert(open_model_folder(folder))
    for name in ("AutoModel", "pipeline", "Trainer", "PreTrainedModel", "utils", "__doc__"):
        change(folder / "config.json", architectures=[name])
        with pytest.raises(CheckpointError, match="expected the name of one transformers model"):
            load_expert(open_model_folder(folder))
    assert not (folder / "RAN").exists()


def test_every_call_that_reads_a_model_says_that_no_code_runs() -> None:
    found = 0
    for path in [p for package in ("tintray", "jobs") for p in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in ("from_pretrained", "from_config"):
                continue
            said = [k.value for k in node.keywords if k.arg == "trust_remote_code"]
            assert [getattr(v, "value", None) for v in said] == [False], f"{path}:{node.lineno}"
            found += 1
    assert found >= 4


SIZED = '{"image_processor_type": "ViTImageProcessor", "size": %s}'
HOSTILE_FILES = {
    "tokenizer.json": (
        *("{}", "[]", '{"added_tokens": 5, "model": 5}', "{", '{"model": {"type": "BPE"}}'),
        *("[" * 100_000, "\0"),
    ),
    "tokenizer_config.json": ("[]", '{"tokenizer_class": 5}', '{"added_tokens_decoder": [1]}', "{"),
    "preprocessor_config.json": (
        *("[]", "{", "null", '{"image_processor_type": 5}', '{"image_processor_type": "Trainer"}'),
        *(SIZED % '{"height": 1000000000, "width": 1}', SIZED % '"x"'),
    ),
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_damaged_processors_are_refused(tmp_path: Path, name: str) -> None:
    text = name.startswith("tokenizer")
    if text:
        tiny.tokenizer().save_pretrained(tmp_path)
    for content in HOSTILE_FILES[name]:
        (tmp_path / name).write_text(content)
        try:
            processor_in(tmp_path, "x", text=text)
        except CheckpointError as error:
            assert str(error).startswith("x: ")
        else:
            assert text, content
