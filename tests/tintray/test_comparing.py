"""Which configurations mean the same: compared as transformers reads them, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests import tiny_models as tiny
from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.checkpoints.safetensors_files import TensorInfo
from tintray.errors import CheckpointError
from tintray.models.comparing import OF_NO_CONSEQUENCE, check_same_computation, check_same_model
from tintray.models.config_usage import computes_with

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
SCORED = {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}
BERT = {**LLAMA, "model_type": "bert", "architectures": ["BertForSequenceClassification"]}
ROBERTA = {**LLAMA, "model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}

ESM = {**BERT, "model_type": "esm", "architectures": ["EsmForSequenceClassification"]}

SAME: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (LLAMA, {"rope_theta": 10000.0}, {"rope_parameters": ROPE}),  # in the spelling of version 4
    (LLAMA, {"rms_norm_eps": 1e-6, "attention_bias": False}, {}),  # the default, on one side
    (LLAMA, {"num_key_value_heads": 2}, {}),  # a default by another field
    (LLAMA, {"rope_scaling": None}, {}),
    (LLAMA, {"pad_token_id": None}, {"pad_token_id": 0}),
    (LLAMA, {"pad_token_id": 1}, {"pad_token_id": 0}),
    (LLAMA, {"eos_token_id": 3}, {"eos_token_id": [3, 7]}),
    (LLAMA, {"bos_token_id": 2}, {"bos_token_id": 0}),
    (LLAMA, {"max_position_embeddings": 32}, {"max_position_embeddings": 64}),
    (BERT, {"pad_token_id": 1}, {"pad_token_id": 0}),  # it only has a row of its own there
    (BERT, {"hidden_dropout_prob": 0.3}, {"classifier_dropout": 0.2}),
    (BERT, {"id2label": {"0": "a", "1": "b", "2": "c"}}, {"problem_type": "regression"}),
    (SCORED, {"pad_token_id": None}, {"pad_token_id": 0}),
    (LLAMA, {"unsloth_version": "1", "use_cache": False}, {"my_run": 7}),  # trainers leave these
    (LLAMA, {"auto_map": {"AutoModel": "m.M"}}, {"transformers_weights": "other.safetensors"}),
    (LLAMA, {"attn_implementation": "somebody/kernels"}, {}),
]
OTHER: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("theta", LLAMA, {"rope_theta": 1e6}, {"rope_parameters": ROPE}),
    ("rope_theta", LLAMA, {"rope_theta": 1e6}, {}),
    ("rms_norm_eps", LLAMA, {"rms_norm_eps": 1e-5}, {}),
    ("is_decoder", BERT, {"is_decoder": True}, {}),
    ("num_key_value_heads", LLAMA, {"num_key_value_heads": 1}, {}),
    ("hidden_act", BERT, {"hidden_act": "relu"}, {"hidden_act": "gelu"}),
    ("pad_token_id", ROBERTA, {"pad_token_id": 1}, {"pad_token_id": 0}),  # positions start there
    ("pad_token_id", SCORED, {"pad_token_id": 1}, {"pad_token_id": 0}),  # it ends a text
    (  # positions are scaled to it
        "max_position_embeddings",
        {**LLAMA, "rope_parameters": YARN},
        {"max_position_embeddings": 32},
        {"max_position_embeddings": 64},
    ),
    ("token_dropout", ESM, {"token_dropout": True}, {"token_dropout": False}),
]


def compared(common: dict[str, Any], one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    models = [ModelFolder(Path(f"/{n}"), {**common, **own}) for n, own in enumerate((one, other))]
    return check_same_computation(*models, "the base", "tasks.x.expert")


@pytest.mark.parametrize(("common", "one", "other"), SAME)
def test_what_computes_the_same_is_accepted(
    common: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert compared(common, one, other) == compared(common, other, one) == []


@pytest.mark.parametrize(("field", "common", "one", "other"), OTHER)
def test_what_computes_something_else_is_refused(
    field: str, common: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    for pair in ((one, other), (other, one)):
        with pytest.raises(CheckpointError, match=rf"^tasks\.x\..* has .*{field}.*the base"):
            compared(common, *pair)


def test_every_field_that_computes_is_compared() -> None:
    """Of each field of a configuration: another value is refused, unless it is on the list."""
    gpt2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    vit = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    for common in (LLAMA, BERT, ROBERTA, gpt2, vit):
        fields = transformers.AutoConfig.for_model(**common).to_dict()
        numbers = {n: v for n, v in fields.items() if isinstance(v, float | int) and v}
        assert len(numbers) > 8
        for name in numbers.keys() - OF_NO_CONSEQUENCE:
            value = numbers[name]
            if name.endswith("token_id") or "position" in name:
                continue
            with pytest.raises(CheckpointError):
                changed = not value if isinstance(value, bool) else value * 2
                compared(common, {name: value}, {name: changed})


def test_a_class_computes_with_tokens_that_its_code_looks_at() -> None:
    tokens = ("pad_token_id", "eos_token_id", "bos_token_id")
    found = {
        "LlamaForCausalLM": [],
        "BertForSequenceClassification": [],
        "GPT2LMHeadModel": [],
        "GPT2ForSequenceClassification": ["pad_token_id"],
        "RobertaModel": ["pad_token_id"],
        "BartForSequenceClassification": ["pad_token_id", "eos_token_id"],
        "ViTForImageClassification": [],
    }
    for name, looked_at in found.items():
        cls = getattr(transformers, name)
        assert [token for token in tokens if computes_with(cls, token)] == looked_at, name


def stored(**dtypes: str) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, (2,), 0, 0) for name, dtype in dtypes.items()}


def test_other_types_of_numbers_are_told() -> None:
    base, expert = (
        ModelFolder(Path("/x"), LLAMA, (), stored(a=dtype, n="I64")) for dtype in ("F32", "BF16")
    )
    (told,) = check_same_computation(base, expert, "the base", "tasks.x.expert")
    assert told.startswith("tasks.x.expert is stored as BF16, the base as F32; both are read as")
    assert check_same_model(base, base, "a", "b") == []


def test_whole_models_need_the_same_classes_tokens_and_kinds_of_numbers(tmp_path: Path) -> None:
    for name in ("one", "same", "other"):
        tiny.tokenizer().save_pretrained(tmp_path / name)
    vocabulary = tmp_path / "other" / "tokenizer.json"
    words = json.loads(vocabulary.read_text())
    numbers = words["model"]["vocab"]
    first, second = list(numbers)[5:7]
    numbers[first], numbers[second] = numbers[second], numbers[first]
    vocabulary.write_text(json.dumps(words))

    def model(folder: str, *labels: str, dtype: str = "F32") -> ModelFolder:
        named = {"id2label": {str(n): label for n, label in enumerate(labels)}} if labels else {}
        return ModelFolder(tmp_path / folder, {**BERT, **named}, (), stored(a=dtype))

    one = model("one", "cat", "dog")
    for same in (model("same", "cat", "dog"), model("same", "LABEL_0", "LABEL_1"), model("none")):
        assert check_same_model(one, same, "one", "other") == []
    for expert, said in (
        (model("same", "dog", "cat"), "calls class 0 'dog', one calls it 'cat'"),
        (model("other", "cat", "dog"), "its tokenizer has the token"),
        (model("same", "cat", "dog", dtype="I64"), "tensor 'a' is stored as I64, and as F32"),
    ):
        with pytest.raises(CheckpointError, match=rf"^other.*{said}"):
            check_same_model(one, expert, "one", "other")


def test_models_of_no_class_are_compared_as_they_are_written(tmp_path: Path) -> None:
    def model(**config: Any) -> ModelFolder:
        return ModelFolder(tmp_path, config)

    assert check_same_model(model(), model(), "one", "other") == []
    assert check_same_model(model(a=1, dtype="float16"), model(a=1), "one", "other") == []
    for own in ({"a": 2}, {"a": True}, {}):
        with pytest.raises(CheckpointError, match=r"^other: .*config\.json has a"):
            check_same_model(model(a=1), model(**own), "one", "other")


def test_a_quantisation_that_left_only_its_name_is_told(tmp_path: Path) -> None:
    how = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **how}))
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    checkpoint = open_model_folder(tmp_path, role="x")
    assert checkpoint.notices("x") == [
        "x: config.json speaks of a quantisation (bitsandbytes), and the weights are plain; it is "
        "left out"
    ]
    assert b"quantization" not in checkpoint.configs()["config.json"]
    assert compared(LLAMA, how, {}) == []
    for dtype in (torch.uint8, torch.int32, torch.float8_e4m3fn):
        save_file({"a": torch.zeros(2).to(dtype)}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"^x: .*quantised \(bitsandbytes\): tensor 'a'"):
            open_model_folder(tmp_path, role="x")
