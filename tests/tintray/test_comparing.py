"""Which configurations mean the same: compared as transformers reads them, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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

SAME = {
    "in the spelling of version 4": (LLAMA, {"rope_theta": 10000.0}, {"rope_parameters": ROPE}),
    "the default, on one side": (LLAMA, {"rms_norm_eps": 1e-6, "attention_bias": False}, {}),
    "a default by another field": (LLAMA, {"num_key_value_heads": 2}, {}),
    "nothing, in words": (LLAMA, {"rope_scaling": None}, {}),
    "padding": (LLAMA, {"pad_token_id": None}, {"pad_token_id": 0}),
    "another padding": (LLAMA, {"pad_token_id": 1}, {"pad_token_id": 0}),
    "several ends": (LLAMA, {"eos_token_id": 3}, {"eos_token_id": [3, 7]}),
    "a beginning": (LLAMA, {"bos_token_id": 2}, {"bos_token_id": 0}),
    "a longer context": (LLAMA, {"max_position_embeddings": 32}, {"max_position_embeddings": 64}),
    "padding, where it only has a row of its own": (BERT, {"pad_token_id": 1}, {"pad_token_id": 0}),
    "dropout": (BERT, {"hidden_dropout_prob": 0.3}, {"classifier_dropout": 0.2}),
    "the head": (
        BERT,
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        {"problem_type": "regression"},
    ),
    "padding where one side has none": (SCORED, {"pad_token_id": None}, {"pad_token_id": 0}),
    "what trainers leave": (LLAMA, {"unsloth_version": "1", "use_cache": False}, {"my_run": 7}),
    "where code and kernels come from": (
        LLAMA,
        {"auto_map": {"AutoModel": "m.M"}, "attn_implementation": "somebody/kernels"},
        {"transformers_weights": "other.safetensors"},
    ),
}
OTHER = {
    "in the spelling of version 4": (
        LLAMA,
        {"rope_theta": 1e6},
        {"rope_parameters": ROPE},
        "theta",
    ),
    "the default, on one side": (LLAMA, {"rope_theta": 1e6}, {}, "rope_theta"),
    "another number, on one side": (LLAMA, {"rms_norm_eps": 1e-5}, {}, "rms_norm_eps"),
    "a switch": (BERT, {"is_decoder": True}, {}, "is_decoder"),
    "heads": (LLAMA, {"num_key_value_heads": 1}, {}, "num_key_value_heads"),
    "an activation": (BERT, {"hidden_act": "relu"}, {"hidden_act": "gelu"}, "hidden_act"),
    "padding from which positions are counted": (
        *(ROBERTA, {"pad_token_id": 1}, {"pad_token_id": 0}, "pad_token_id"),
    ),
    "padding that ends a text": (SCORED, {"pad_token_id": 1}, {"pad_token_id": 0}, "pad_token_id"),
    "a context that positions are scaled to": (
        LLAMA,
        {"rope_parameters": YARN, "max_position_embeddings": 32},
        {"rope_parameters": YARN, "max_position_embeddings": 64},
        "max_position_embeddings",
    ),
    "a name that only holds one of no consequence": (
        *({**BERT, "model_type": "esm", "architectures": ["EsmForSequenceClassification"]},),
        *({"token_dropout": True}, {"token_dropout": False}, "token_dropout"),
    ),
}


def compared(common: dict[str, Any], one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    models = [ModelFolder(Path(f"/{n}"), {**common, **own}) for n, own in enumerate((one, other))]
    return check_same_computation(*models, "the base", "tasks.x.expert")


@pytest.mark.parametrize(("common", "one", "other"), SAME.values(), ids=SAME.keys())
def test_what_computes_the_same_is_accepted(
    common: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert compared(common, one, other) == compared(common, other, one) == []


@pytest.mark.parametrize(("common", "one", "other", "field"), OTHER.values(), ids=OTHER.keys())
def test_what_computes_something_else_is_refused(
    common: dict[str, Any], one: dict[str, Any], other: dict[str, Any], field: str
) -> None:
    for pair in ((one, other), (other, one)):
        with pytest.raises(
            CheckpointError, match=rf"^tasks\.x\.expert: .* has .*{field}.*the base"
        ):
            compared(common, *pair)


def test_every_field_that_computes_is_compared() -> None:
    """Of each field of a configuration: another value is refused, unless it is on the list."""
    import transformers

    for common in (LLAMA, BERT, ROBERTA, {"model_type": "gpt2"}, {"model_type": "vit"}):
        cls = transformers.AutoConfig.for_model(**common)
        ours = {**common, "architectures": common.get("architectures", ["GPT2LMHeadModel"])}
        if common["model_type"] == "vit":
            ours["architectures"] = ["ViTForImageClassification"]
        numbers = [n for n, v in cls.to_dict().items() if isinstance(v, float | int) and v]
        assert len(numbers) > 8
        for name in set(numbers) - OF_NO_CONSEQUENCE:
            value = cls.to_dict()[name]
            other = {name: not value} if isinstance(value, bool) else {name: value * 2}
            if name.endswith("token_id") or "position" in name:
                continue
            with pytest.raises(CheckpointError):
                compared(ours, {name: value}, other)


def test_a_class_computes_with_tokens_that_its_code_looks_at() -> None:
    import transformers

    found = {
        name: [
            token
            for token in ("pad_token_id", "eos_token_id", "bos_token_id")
            if computes_with(getattr(transformers, name), token)
        ]
        for name in (
            *("LlamaForCausalLM", "BertForSequenceClassification", "GPT2LMHeadModel"),
            *("GPT2ForSequenceClassification", "RobertaModel", "BartForSequenceClassification"),
            "ViTForImageClassification",
        )
    }
    assert found == {
        "LlamaForCausalLM": [],
        "BertForSequenceClassification": [],
        "GPT2LMHeadModel": [],
        "GPT2ForSequenceClassification": ["pad_token_id"],
        "RobertaModel": ["pad_token_id"],
        "BartForSequenceClassification": ["pad_token_id", "eos_token_id"],
        "ViTForImageClassification": [],
    }


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
        tokens = tiny.tokenizer()
        tokens.save_pretrained(tmp_path / name)
    vocabulary = tmp_path / "other" / "tokenizer.json"
    words = json.loads(vocabulary.read_text())
    first, second = list(words["model"]["vocab"])[5:7]
    numbers = words["model"]["vocab"]
    numbers[first], numbers[second] = numbers[second], numbers[first]
    vocabulary.write_text(json.dumps(words))

    def model(folder: str, *labels: str, dtype: str = "F32") -> ModelFolder:
        named = {"id2label": {str(n): label for n, label in enumerate(labels)}} if labels else {}
        return ModelFolder(tmp_path / folder, {**BERT, **named}, (), stored(a=dtype))

    one = model("one", "cat", "dog")
    assert check_same_model(one, model("same", "cat", "dog"), "one", "other") == []
    assert check_same_model(one, model("same", "LABEL_0", "LABEL_1"), "one", "other") == []
    assert check_same_model(one, model("none"), "one", "other") == []
    for expert, words_ in (
        (model("same", "dog", "cat"), "calls class 0 'dog', one calls it 'cat'"),
        (model("other", "cat", "dog"), "its tokenizer has the token"),
        (model("same", "cat", "dog", dtype="I64"), "tensor 'a' is stored as I64, and as F32"),
    ):
        with pytest.raises(CheckpointError, match=rf"^other.*{words_}"):
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
    import torch
    from safetensors.torch import save_file

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
