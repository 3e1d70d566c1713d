"""Every kind of module and every option of PEFT's LoRA: read as PEFT computes, or refused."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.errors import CheckpointError
from tintray.models.adapter_options import UNDERSTOOD, by_pattern, is_plain
from tintray.models.adapters import apply, read_adapter, task_vector
from tintray.models.loading import load_base, load_expert
from tintray.numerics.low_rank import LowRank

peft = pytest.importorskip("peft")


class Attention(nn.Module):
    """PEFT wants to find a MultiheadAttention by its own call."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x, x, x)[0]
        return found


class Whole(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.last = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.part(x))
        return found


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "linear without a bias": (lambda: nn.Linear(6, 4, bias=False), (3, 6)),
    "embedding": (lambda: nn.Embedding(9, 5), None),
    "transposed": (lambda: Conv1D(4, 6), (3, 6)),
    "convolution over a line": (lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "convolution over an image": (lambda: nn.Conv2d(3, 4, (3, 2), stride=2), (2, 3, 8, 8)),
    "convolution of single points": (lambda: nn.Conv2d(3, 4, 1), (2, 3, 8, 8)),
    "convolution over a volume": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank stabilised": {"use_rslora": True},
    "by patterns": {"rank_pattern": {"part": 3}, "alpha_pattern": {".*part": 7}},
    "with biases": {"bias": "all"},
    "another beginning": {"init_lora_weights": "gaussian"},
}


def saved(base: nn.Module, folder: Path, **config: Any) -> Any:
    """A PEFT model of a copy of ``base``, with random factors, and its folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return model.eval()


def looked_at(folder: Path, **changes: Any) -> ModelFolder:
    adapter = json.loads((folder / "adapter_config.json").read_text()) | changes
    weights = (folder / "adapter_model.safetensors",)
    return ModelFolder(folder, {}, weights, adapter=adapter, base=ModelFolder(folder, {}))


def adapted(part: nn.Module, folder: Path, **settings: Any) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    base = Whole(part)
    known = {"r": 2, "lora_alpha": 5, "target_modules": ["part"], "init_lora_weights": False}
    return saved(base, folder, **{**known, **settings}), base


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_each_kind_of_module_computes_as_with_peft(
    kind: tuple[Callable[[], nn.Module], tuple[int, ...] | None],
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    make, shape = kind
    model, base = adapted(make(), tmp_path, **settings)
    before = copy.deepcopy(base)
    apply(read_adapter(looked_at(tmp_path), base, "x"), base)
    inputs = torch.arange(9)[None] if shape is None else torch.randn(shape)
    with torch.no_grad():
        expected, found = model(inputs), base.eval()(inputs)
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(before.eval()(inputs), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("part", "target", "words"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "part", "a Conv2d of several groups"),
        (Attention(), "out_proj", "a part of a MultiheadAttention, whose"),
    ],
)
def test_what_peft_does_not_merge_is_refused_by_name(
    part: nn.Module, target: str, words: str, tmp_path: Path
) -> None:
    _, base = adapted(part, tmp_path, target_modules=[target], init_lora_weights=True)
    with pytest.raises(CheckpointError, match=rf"^x: .*factors of 'part.*, {words}"):
        read_adapter(looked_at(tmp_path), base, "x")


OTHER = {
    "use_dora": True,
    "use_qalora": True,
    "lora_bias": True,
    "ensure_weight_tying": True,
    "alora_invocation_tokens": [6, 7],
    "layer_replication": [[0, 2], [1, 3]],
    "trainable_token_indices": {"embed_tokens": [1, 2]},
    "target_parameters": ["part.weight"],
    "megatron_config": {"a": 1},
    "velora_config": {"a": 1},
    "monteclora_config": {"a": 1},
    "arrow_config": {"a": 1},
    "kasa_config": {"a": 1},
    "use_bdlora": {"a": 1},
    "an_option_of_tomorrow": 3,
}


def test_every_other_option_is_refused_by_name(tmp_path: Path) -> None:
    """Every option of PEFT is understood, or off by itself and refused where it is on."""
    known = peft.LoraConfig().to_dict()
    assert known.keys() - UNDERSTOOD <= OTHER.keys()
    assert {known[name] for name in known.keys() - UNDERSTOOD} <= {None, False}
    _, base = adapted(nn.Linear(6, 4), tmp_path)
    for name, value in OTHER.items():
        with pytest.raises(CheckpointError, match=rf"^x: .*_config\.json has {name}=.*merge"):
            read_adapter(looked_at(tmp_path, **{name: value}), base, "x")
        assert read_adapter(looked_at(tmp_path, **{name: None}), base, "x").rank == 2


WRONG: dict[str, list[Any]] = {
    "peft_type": [1, "IA3"],
    "init_lora_weights": ["pissa", "pissa_niter_4", "mica", "lora_ga", 3],
    "r": [{"a": 1}, 3],
    "lora_alpha": ["SEQ_CLS", 10**400, float("nan"), float("inf"), None],
    "rank_pattern": [1.5],
    "alpha_pattern": [2**63 - 1, {"part": "x"}, {r"([a-z0-9]+\.?)+!": 4}, {"(a|a)*b": 4}, {"[": 4}],
    "use_rslora": ["yes"],
    "fan_in_fan_out": [{"a": None}],
    "target_modules": [5, ["other"]],
    "modules_to_save": [0, ["last"]],
    "bias": [[1]],
}


def test_an_option_of_the_wrong_sort_is_refused_by_name(tmp_path: Path) -> None:
    _, base = adapted(nn.Linear(6, 4), tmp_path)
    for field, values in WRONG.items():
        for value in values:
            with pytest.raises(CheckpointError, match=r"^x: "):
                read_adapter(looked_at(tmp_path, **{field: value}), base, "x")


def test_patterns_are_matched_as_peft_does_unless_they_could_take_for_ever() -> None:
    from peft.utils.other import get_pattern_key

    plain = ("q_proj", "layer.1.*query", r"model\.\d+\.(q|v)_proj", "^a.b$", "[0-3].q")
    assert all(map(is_plain, plain))
    loops = ("(a+)+$", r"([a-z.0-9]+)+!", "(.*)*x", ".*.*.*x", "(?=a)b", r"(a)\1", "a" * 501)
    assert not any(map(is_plain, loops))
    paths = ("a.layer.1.self.query", "layer.12.query", "layer.1.key", "x.y.q_proj", "q_proj.z")
    for pattern in ("layer.1.*query", "q_proj", "query|key", "1.query"):
        for path in paths:
            found = by_pattern({pattern: "pattern"}, path, "default", "x")
            assert (found == "pattern") == (get_pattern_key([pattern], path) == pattern)


DAMAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no tensor": lambda t: {},
    "no factors": lambda t: {"base_model.model.part.bias": torch.zeros(4)},
    "half of a pair": lambda t: {k: v for k, v in t.items() if "lora_A" in k},
    "a factor in one line": lambda t: {k: v.flatten() for k, v in t.items()},
    "a factor of nothing": lambda t: {k: v[:0] for k, v in t.items()},
    "factors without a module": lambda t: {k.replace("part.", ""): v for k, v in t.items()},
    "factors of another module": lambda t: {k.replace("part", "nope"): v for k, v in t.items()},
    "factors that are not named": lambda t: {k.replace("part", "last"): v for k, v in t.items()},
    "a tensor of no name": lambda t: {**t, "": torch.zeros(2)},
    "a tensor of another module": lambda t: {**t, "base_model.model.nope.weight": torch.zeros(2)},
    "a tensor of another shape": lambda t: {**t, "base_model.model.part.bias": torch.zeros(2)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_adapters_are_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    _, base = adapted(nn.Linear(6, 4), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    changed = damage(load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path)
    with pytest.raises(CheckpointError, match=r"^x: "):
        read_adapter(looked_at(tmp_path), base, "x")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A small Llama whose head is its own, and one whose head is tied."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 32, "vocab_size": 30}
    folder = tmp_path_factory.mktemp("bases")
    for tied in (False, True):
        torch.manual_seed(0)
        config = LlamaConfig(initializer_range=0.2, tie_word_embeddings=tied, **sizes)
        LlamaForCausalLM(config).save_pretrained(folder / str(tied))
    return {tied: folder / str(tied) for tied in (False, True)}


def of_llama(base: Path, folder: Path, **settings: Any) -> tuple[Any, ModelFolder]:
    module = LlamaForCausalLM.from_pretrained(base)
    model = saved(module, folder, r=2, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    return model, open_model_folder(folder, base=open_model_folder(base), role="x")


READ = {
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "the embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "the head, trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("settings", READ.values(), ids=READ.keys())
def test_the_product_is_added_to_the_layer_that_is_stored_beside_it(
    bases: dict[bool, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    model, checkpoint = of_llama(bases[False], tmp_path, **settings)
    ids = torch.arange(4, 20)[None]
    expert = load_expert(checkpoint)
    with torch.no_grad():
        found, expected = expert(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    base: Any = load_base(open_model_folder(bases[False]), like=checkpoint)
    names = [name for name, _ in base.named_parameters()]
    vector = task_vector(read_adapter(checkpoint, base, "x"), base, names)
    assert all(isinstance(row, LowRank) for name, row in vector.items() if "lm_head" not in name)
    for name in names:
        row = vector.get(name)
        wanted = expert.get_parameter(name) - base.get_parameter(name)
        change = row.dense() if isinstance(row, LowRank) else row
        change = torch.zeros_like(wanted) if change is None else change.view_as(wanted)
        assert torch.allclose(change, wanted, atol=1e-6), name


@pytest.mark.parametrize("settings", READ.values(), ids=READ.keys())
def test_one_end_of_tied_weights_is_refused_by_name(
    bases: dict[bool, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    _, checkpoint = of_llama(bases[True], tmp_path, **settings)
    with pytest.raises(CheckpointError, match=r"changes '.*(lm_head|embed_tokens)\.weight', which"):
        load_expert(checkpoint)


def test_an_adapter_with_more_tokens_than_its_base_is_refused(
    bases: dict[bool, Path], tmp_path: Path
) -> None:
    _, checkpoint = of_llama(bases[False], tmp_path, target_modules=["embed_tokens"])
    path = tmp_path / "adapter_model.safetensors"
    stored = load_file(path)
    (layer,) = (name for name in stored if "base_layer" in name)
    save_file(stored | {layer: torch.cat([stored[layer], stored[layer][:2]])}, path)
    checkpoint = open_model_folder(tmp_path, base=checkpoint.base, role="x")
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight' with shape \[32, 16\]"):
        load_expert(checkpoint, "x")
