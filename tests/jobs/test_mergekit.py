"""mergekit's recipes mean here what they mean there, or are refused by name.

What mergekit 0.1.5 makes of the table in ``tests/peers.py`` is on record as a few numbers of each
recipe; where ``TINTRAY_PEERS_PYTHON`` names an interpreter that has mergekit, it runs now and every
number is compared. ``TINTRAY_PEERS_RECORD=1`` writes the record anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import peers
from tintray.checkpoints.model_folder import open_model_folder
from tintray.errors import InputError, SpecError
from tintray.jobs import api
from tintray.jobs.cli import main
from tintray.jobs.config.mergekit import read_mergekit
from tintray.merging.mergekit.blends import BLENDS

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mergekit")
    peers.make_models(made / "m")
    return made


def merge(folder: Path, recipe: str, name: str, **options: Any) -> dict[str, Tensor]:
    file = folder / f"{name}.yml"
    file.write_text(recipe)
    output = api.compose(file, folder / f"ours-{name}", **options)
    return {n: t for path in open_model_folder(output).weights for n, t in load_file(path).items()}


@pytest.fixture(scope="module")
def ours(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {name: merge(folder, recipe, name) for name, recipe in peers.RECIPES.items()}


def sketch(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What is on record of a result."""
    return {
        "types": sorted({str(tensor.dtype) for tensor in tensors.values()}),
        "tensors": len(tensors),
        "sums": peers.sketch([tensors[name] for name in sorted(tensors)], (1.0, 1.7, 2.9)),
    }


@pytest.mark.parametrize("name", peers.RECIPES)
def test_a_recipe_gives_what_mergekit_gave(ours: dict[str, dict[str, Tensor]], name: str) -> None:
    record = peers.record("recipes")[name]
    found = sketch(ours[name])
    assert (found["types"], found["tensors"]) == (record["types"], record["tensors"])
    halves = record["types"] != ["torch.float32"]
    np.testing.assert_allclose(found["sums"], record["sums"], rtol=0, atol=2e-2 if halves else 2e-5)


def test_recipes_give_what_mergekit_gives_now(
    folder: Path, ours: dict[str, dict[str, Tensor]]
) -> None:
    live = peers.run_peers("recipes", folder)
    theirs: dict[str, dict[str, Tensor]] = {name: {} for name in peers.RECIPES}
    for key, tensor in live.items():
        name, _, tensor_name = key.partition("/")
        theirs[name][tensor_name] = tensor
    if os.environ.get("TINTRAY_PEERS_RECORD"):
        peers.record("recipes", {n: sketch(t) for n, t in theirs.items()})
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
    for name, expected in theirs.items():
        assert ours[name].keys() == expected.keys(), name
        for tensor_name, tensor in expected.items():
            found = ours[name][tensor_name]
            assert found.dtype == tensor.dtype, (name, tensor_name)
            difference = float((found.float() - tensor.float()).abs().max())
            assert difference <= tolerance[tensor.dtype], (name, tensor_name, difference)


def test_the_table_has_every_method() -> None:
    used = {yaml.safe_load(recipe)["merge_method"] for recipe in peers.RECIPES.values()}
    assert used == set(BLENDS)


@pytest.mark.parametrize("method", RANDOM)
def test_random_methods_keep_a_share_and_the_size(folder: Path, method: str) -> None:
    """Entries go at random, the sum of magnitudes stays; della keeps more of the large ones."""
    recipe = (
        f"models: [{{model: m/a}}]\nmerge_method: {method}\nbase_model: m/base\n"
        "parameters: {weight: 1, density: 0.6, normalize: false}"
    )
    merged = merge(folder, recipe, f"random-{method}")
    again = merge(folder, recipe, f"again-{method}", seed=1)
    base, expert = (load_file(folder / f"m/{n}/model.safetensors") for n in ("base", "a"))
    shares, large, small = [], [], []
    for name, tensor in merged.items():
        before, after = expert[name] - base[name], tensor - base[name]
        kept = after.abs() > 1e-7
        factor = before.abs().sum() / before[kept].abs().sum()
        torch.testing.assert_close(after[kept], before[kept] * factor, atol=1e-6, rtol=1e-4)
        if tensor.ndim == 2:
            shares.append(kept.float().mean())
            middle = before.abs().median(1, keepdim=True).values
            large.append(kept[before.abs() > middle].float().mean())
            small.append(kept[before.abs() <= middle].float().mean())
        assert tensor.numel() < 30 or not torch.equal(tensor, again[name])
    assert float(torch.stack(shares).mean()) == pytest.approx(0.6, abs=0.03)
    more = float((torch.stack(large) - torch.stack(small)).mean())
    assert more == pytest.approx(0.15 if "della" in method else 0, abs=0.05)


def test_the_result_is_a_model_of_as_many_layers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    recipe = peers.RECIPES["ex_passthrough"]
    merge(folder, recipe, "loaded")
    model, told = AutoModelForCausalLM.from_pretrained(
        folder / "ours-loaded", output_loading_info=True
    )
    assert not any(told.values())
    assert (model.config.num_hidden_layers, model.dtype) == (6, torch.float16)


# -- what is refused -----------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "m/base",
    "models": [{"model": "m/base"}, {"model": "m/a"}, {"model": "m/b"}],
    "parameters": {"weight": 0.5},
}
LAYERS = {"layer_range": [0, 4]}


def of(*models: dict[str, Any]) -> dict[str, Any]:
    return {"models": list(models)}


def sliced(*sources: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"models": None, "slices": [{"sources": list(sources), **fields}]}


A, B = {"model": "m/a"}, {"model": "m/b"}
SLERP: dict[str, Any] = {"merge_method": "slerp", "base_model": "m/a", "parameters": {"t": 0.5}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a method": ({"merge_method": "ti"}, "merge_method: .*did you mean 'ties'"),
    "no method": ({"merge_method": None}, "merge_method: expected one of"),
    "a method that is not done": ({"merge_method": "ram"}, "merge_method: expected one of linear"),
    "a method that is a list": ({"merge_method": ["ties"]}, "merge_method: expected one of"),
    "a key": ({"merge_methd": 1}, "merge_methd: is not read here; did you mean 'merge_method'"),
    "modules": ({"modules": {}}, "modules: is not read here"),
    "tokenizer_source": ({"tokenizer_source": "union"}, "tokenizer_source: is not read here: emb"),
    "tokenizer": ({"tokenizer": {"source": "base"}}, "tokenizer: is not read here: emb"),
    "chat_template": ({"chat_template": "auto"}, "chat_template: is not read here: the base's"),
    "a parameter": ({"parameters": {"wieght": 1}}, r"parameters.wieght: ties .*mean 'weight'"),
    "a model's parameter": (
        of({**A, "parameters": {"wieght": 1}}),
        r"models\.0\.parameters\.wieght: ties has no such parameter; did you mean 'weight'",
    ),
    "a slice's parameter": (
        sliced(A | LAYERS, {"model": "m/base"} | LAYERS, parameters={"wieght": 1}),
        r"slices\.0\.parameters\.wieght",
    ),
    "a slice's key": (sliced(A | LAYERS, residual_weight=0.5), "residual_weight: is not read here"),
    "a model's key": (of({**A, "layer_range": [0, 4]}), r"models\.0\.layer_range: is not read"),
    "t under a model": (
        SLERP | of(A, {**B, "parameters": {"t": 0.3}}),
        r"models\.1\.parameters\.t: slerp has one value of it for all models",
    ),
    "lambda under a model": (
        of({**A, "parameters": {"lambda": 2}}),
        r"models\.0\.parameters\.lambda: ties has one value of it for all models",
    ),
    "another method's parameter": ({"parameters": {"t": 0.5}}, "parameters.t: ties has no such"),
    "a density that is not used": (
        {"merge_method": "task_arithmetic", "parameters": {"density": 0.5}},
        r"parameters\.density: task_arithmetic has no such parameter",
    ),
    "a density above 1": (
        {"parameters": {"density": 1.5}},
        r"density: expected a number from 0 to 1, .*found 1\.5",
    ),
    "a range that leaves 0 to 1": (
        {"merge_method": "della", "parameters": {"weight": 1, "density": 0.9, "epsilon": 0.2}},
        "della expects density ± epsilon between 0 and 1, found 0.9 ± 0.2",
    ),
    "no weight": ({"parameters": None}, r"parameters\.weight: ties needs a value of '.*/a'"),
    "no weight where no filter holds": (
        {"parameters": {"weight": [{"filter": "mlp", "value": 1}]}},
        r"parameters\.weight: ties needs a value of '.*/a' for tensor 'lm_head.weight'",
    ),
    "an unknown key of a filter": (
        {"parameters": {"weight": [{"filte": "mlp", "value": 1}]}},
        r"parameters\.weight\.filte: is not read here; did you mean 'filter'",
    ),
    "a text for a number": ({"parameters": {"weight": "much"}}, "weight: expected a number"),
    "a date for a number": ({"parameters": {"weight": "2020-99-99"}}, "weight: expected a number"),
    "an infinite number": ({"parameters": {"weight": float("inf")}}, "weight: expected a number"),
    "an empty list": ({"parameters": {"weight": []}}, "weight: expected a number"),
    "a number for a flag": ({"parameters": {"normalize": 3}}, "normalize: expected true or false"),
    "no parameters": ({"parameters": "postgresql://h"}, "parameters: expected a mapping"),
    "no base": ({"base_model": None}, "base_model: ties needs one"),
    "the base as a list": ({"base_model": ["m/base"]}, "base_model: expected the path of a model"),
    "another type": ({"dtype": "float8"}, "dtype: expected one of float32"),
    "a type that is a list": ({"out_dtype": [1]}, "out_dtype: expected one of float32"),
    "no such model": (of({"model": "c/d/e"}), "'c/d/e', which does not exist"),
    "an adapter": (of({"model": "m/a+lora"}), "an adapter after '\\+' is not read here"),
    "a model in parts": (of({"model": {"path": "m/a"}}), "model: expected the path of a model"),
    "a model twice": (of(A, A), "'.*/a' is listed twice"),
    "a model under two names": (of(A, {"model": "m/../m/a"}), "'.*/a' is listed twice"),
    "models and slices": ({"slices": [{"sources": [A | LAYERS]}]}, "either models or slices"),
    "neither": ({"models": None}, "either models or slices"),
    "no models": ({"models": []}, "models: expected a list"),
    "a model that is a list": (of([1]), r"models\.0: expected model, parameters"),  # type: ignore[arg-type]
    "three for slerp": (SLERP | of(A, B, {"model": "m/c"}), "slerp merges 2 models.* found 3"),
    "one for slerp": (SLERP | of(A), "slerp merges 2 models.* found 1"),
    "two for model_stock": (
        {"merge_method": "model_stock", "parameters": None} | of(A),
        "model_stock merges at least 3 models",
    ),
    "two for passthrough": (
        {"merge_method": "passthrough", "parameters": None, "base_model": None} | of(A, B),
        "passthrough merges 1 models",
    ),
    "a slice without its base": (sliced(A | LAYERS), "expected the base '.*/base' among them"),
    "a slice without layers": (SLERP | sliced(A, B), r"layer_range: expected \[FIRST, LAST\]"),
    "layers backwards": (
        SLERP | sliced({**A, "layer_range": [3, 1]}, B | LAYERS),
        "layer_range: .*0 <= FIRST < LAST",
    ),
    "more layers than there are": (
        SLERP | sliced({**A, "layer_range": [1, 5]}, {**B, "layer_range": [0, 4]}),
        r"layer_range \[1, 5\] of '.*/a' goes beyond its 4 layers",
    ),
    "other numbers of layers": (
        SLERP | sliced({**A, "layer_range": [0, 3]}, B | LAYERS),
        r"expected as many layers of each, found \[3, 4\]",
    ),
    "models of other depths": (of(A, {"model": "m/short"}), r"lacks tensor '.*layers\.2"),
    "tied and untied models": (of(A, {"model": "m/b-tied"}), "tie_word_embeddings=True"),
    "weights that cancel": (
        {"merge_method": "linear", "base_model": None, "parameters": None}
        | of({**A, "parameters": {"weight": 1}}, {**B, "parameters": {"weight": -1}}),
        "linear gives values for tensor .* that are not finite .*add up to 0",
    ),
}


@pytest.mark.parametrize(("fields", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(folder: Path, fields: dict[str, Any], words: str) -> None:
    written = {key: value for key, value in (GOOD | fields).items() if value is not None}
    before = sorted(path.name for path in folder.iterdir() if path.suffix != ".yml")
    with pytest.raises(InputError, match=words) as caught:
        merge(folder, yaml.safe_dump(written), "refused")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".yml") == before


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: !!bool z",
        "models: " + "[" * 2000,
        "models: [{model: m/a, parameters: {density: 2020-99-99, weight: 1}}]\n"
        "merge_method: ties\nbase_model: m/base",
        "parameters: {normalize: !!timestamp x}\nmerge_method: ties",
        "- 1",
        "",
        "\x00",
    ],
)
def test_a_damaged_file_ends_in_one_sentence(folder: Path, text: str) -> None:
    (folder / "damaged.yml").write_text(text)
    with pytest.raises(SpecError) as caught:
        read_mergekit(folder / "damaged.yml")
    assert "\n" not in str(caught.value)


def test_what_mergekit_passes_over_is_told(folder: Path) -> None:
    written = GOOD | of({"model": "m/base", "parameters": {"weight": 0.3}}, A)
    (folder / "told.yml").write_text(yaml.safe_dump(written))
    (notice,) = read_mergekit(folder / "told.yml").notices
    assert "models.0.parameters.weight has no effect, as in mergekit" in notice


# -- tensors that are not weights ----------------------------------------------------------------


def with_extra(folder: Path, name: str, extra: dict[str, Tensor]) -> None:
    source = folder / "m" / name[0]
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "config.json").write_text((source / "config.json").read_text())
    save_file(load_file(source / "model.safetensors") | extra, folder / name / "model.safetensors")


def test_buffers_of_old_models_are_no_hindrance(folder: Path) -> None:
    with_extra(folder, "a-old", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    for models, kept in (("a-old", "b"), True), (("b", "a-old"), False):
        listed = ", ".join(f"{{model: {n if n == 'a-old' else 'm/' + n}}}" for n in models)
        recipe = f"models: [{listed}]\nmerge_method: linear\nparameters: {{weight: 1}}"
        merged = merge(folder, recipe, f"buffers-{kept}")
        assert ("model.layers.0.self_attn.rotary_emb.inv_freq" in merged) == kept


def test_whole_numbers_are_taken_over_where_all_models_agree(folder: Path) -> None:
    with_extra(folder, "a-count", {"model.count": torch.arange(3), "model.none": torch.empty(0, 2)})
    with_extra(folder, "b-count", {"model.count": torch.arange(3), "model.none": torch.empty(0, 2)})
    with_extra(folder, "b-other", {"model.count": torch.ones(3, dtype=torch.int64),
                                   "model.none": torch.empty(0, 2)})  # fmt: skip
    recipe = (
        "models: [{model: a-count}, {model: b-count}]\nmerge_method: linear\n"
        "parameters: {weight: 1}\ndtype: float16"
    )
    merged = merge(folder, recipe, "counts")
    assert torch.equal(merged["model.count"], torch.arange(3))
    assert merged["model.none"].shape == (0, 2)
    with pytest.raises(InputError, match=r"'model\.count' holds whole numbers, and others than"):
        merge(folder, recipe.replace("b-count", "b-other"), "counts-other")


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "slerp", "linear_layers"])
def test_pieces_and_memory_change_nothing(
    folder: Path, ours: dict[str, dict[str, Tensor]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tintray.merging.mergekit import composing

    monkeypatch.setattr(composing, "PIECES", (100, 7))
    again = merge(folder, peers.RECIPES[name], f"pieces-{name}", memory="64KiB")
    assert all(torch.equal(tensor, ours[name][n]) for n, tensor in again.items())
    if name in ("ties", "slerp"):
        with pytest.raises(SpecError, match=r"needs .* raise merge\.memory \(--memory\)"):
            merge(folder, peers.RECIPES[name], f"small-{name}", memory="8KiB")


def test_the_command_writes_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "command.yml"
    file.write_text(peers.RECIPES["linear"])
    output = folder / "from-command"
    assert main(["run", "--from-mergekit", str(file), "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    assert main(["run", "--from-mergekit", str(file), "--output", str(output)]) == 2
    for wrong in (["run"], ["run", "job.yaml", "--from-mergekit", str(file)]):
        assert main(wrong) == 2
