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
from safetensors.torch import load_file
from torch import Tensor

from tests import peers
from tintray.checkpoints.model_folder import open_model_folder
from tintray.errors import InputError, SpecError
from tintray.jobs import api
from tintray.jobs.cli import main
from tintray.jobs.config.mergekit import read_mergekit
from tintray.merging.mergekit import composing
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
    tolerance = 2e-2 if record["types"] != ["torch.float32"] else 2e-5
    if "arcee" in name and torch.backends.cpu.get_cpu_capability() != "AVX512":
        tolerance = 0.1  # rounded otherwise than on record, an entry crosses its threshold
    np.testing.assert_allclose(found["sums"], record["sums"], rtol=0, atol=tolerance)


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

    merge(folder, peers.RECIPES["ex_passthrough"], "loaded")
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


def of(*models: Any) -> dict[str, Any]:
    return {"models": list(models)}


def sliced(*sources: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"models": None, "slices": [{"sources": list(sources), **fields}]}


def layers(model: dict[str, Any], first: int = 0, last: int = 4) -> dict[str, Any]:
    return model | {"layer_range": [first, last]}


def weight(value: Any) -> dict[str, Any]:
    return {"parameters": {"weight": value}}


BASE, A, B = {"model": "m/base"}, {"model": "m/a"}, {"model": "m/b"}
SLERP: dict[str, Any] = {"merge_method": "slerp", "base_model": "m/a", "parameters": {"t": 0.5}}
DELLA = {"weight": 1, "density": 0.9, "epsilon": 0.2}
NO_BASE = {"parameters": None, "base_model": None}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"merge_method": "ti"}, "merge_method: expected one of linear, .*did you mean 'ties'"),
    ({"merge_method": None}, "merge_method: expected one of"),
    ({"merge_method": ["ties"]}, "merge_method: expected one of"),
    ({"merge_methd": 1}, r"merge_methd: is not read here \(did you mean 'merge_method'"),
    ({"modules": {}}, "modules: is not read here"),
    ({"tokenizer_source": "union"}, "tokenizer_source: is not read here: emb"),
    ({"tokenizer": {"source": "base"}}, "tokenizer: is not read here: emb"),
    ({"chat_template": "auto"}, "chat_template: is not read here: the base's"),
    (sliced(layers(A), residual_weight=0.5), "residual_weight: is not read here"),
    (of(layers(A)), r"models\.0\.layer_range: is not read"),
    # parameters
    ({"parameters": {"wieght": 1}}, r"parameters.wieght: ties .*mean 'weight'"),
    (of({**A, "parameters": {"wieght": 1}}), r"models\.0\.parameters\.wieght: .*mean 'weight'"),
    (
        sliced(layers(A), layers(BASE), parameters={"wieght": 1}),
        r"slices\.0\.parameters\.wieght: ties has no such parameter",
    ),
    (
        SLERP | of(A, {**B, "parameters": {"t": 0.3}}),
        r"models\.1\.parameters\.t: slerp has one value of it for all models",
    ),
    (
        of({**A, "parameters": {"lambda": 2}}),
        r"models\.0\.parameters\.lambda: ties has one value of it for all models",
    ),
    ({"parameters": {"t": 0.5}}, "parameters.t: ties has no such"),
    (
        {"merge_method": "task_arithmetic", "parameters": {"density": 0.5}},
        r"parameters\.density: task_arithmetic has no such parameter",
    ),
    ({"parameters": {"density": 1.5}}, r"density: expected a number from 0 to 1, .*found 1\.5"),
    (
        {"merge_method": "della", "parameters": DELLA},
        "della expects density ± epsilon between 0 and 1, found 0.9 ± 0.2",
    ),
    ({"parameters": None}, r"parameters\.weight: ties needs a value of '.*/a'"),
    (
        weight([{"filter": "mlp", "value": 1}]),
        r"parameters\.weight: ties needs a value of '.*/a' for tensor 'lm_head.weight'",
    ),
    (
        weight([{"filte": "mlp", "value": 1}]),
        r"parameters\.weight\.filte: is not read here \(did you mean 'filter'",
    ),
    (weight([{"filter": "mlp"}]), "expected 'value', and a text as 'filter'"),
    (weight("much"), "weight: expected a number"),
    (weight("2020-99-99"), "weight: expected a number"),
    (weight(float("inf")), "weight: expected a number"),
    (weight([]), "weight: expected a number"),
    ({"parameters": {"normalize": 3}}, "normalize: expected true or false"),
    ({"parameters": "postgresql://h"}, "parameters: expected a mapping"),
    ({"base_model": None}, "base_model: ties needs one"),
    ({"base_model": ["m/base"]}, "base_model: expected the path of a model"),
    ({"dtype": "float8"}, "dtype: expected one of float32"),
    ({"out_dtype": [1]}, "out_dtype: expected one of float32"),
    # models
    (of({"model": "c/d/e"}), "'c/d/e', which does not exist"),
    (of({"model": "m/a+lora"}), "an adapter after '\\+' is not read here"),
    (of({"model": {"path": "m/a"}}), "model: expected the path of a model"),
    (of({}), r"models\.0\.model: expected the path of a model"),
    (of(A, A), "'.*/a' is listed twice"),
    (of(A, {"model": "m/../m/a"}), "'.*/a' is listed twice"),
    ({"slices": [{"sources": [layers(A)]}]}, "either models or slices"),
    ({"models": None}, "either models or slices"),
    ({"models": []}, "models: expected a list"),
    (of(1), r"models\.0: expected model, parameters"),
    (SLERP | of(A, B, {"model": "m/c"}), "slerp merges 2 models.* found 3"),
    (SLERP | of(A), "slerp merges 2 models.* found 1"),
    (
        {"merge_method": "model_stock", "parameters": None} | of(A),
        "model_stock merges at least 3 models",
    ),
    (NO_BASE | {"merge_method": "passthrough"} | of(A, B), "passthrough merges 1 models"),
    (of(A, {"model": "m/short"}), r"lacks tensor '.*layers\.2"),
    (of(A, {"model": "m/b-tied"}), "tie_word_embeddings=True"),
    (
        NO_BASE | {"merge_method": "linear"} | of(A | weight(1), B | weight(-1)),
        "linear gives values for tensor .* that are not finite .*add up to 0",
    ),
    # slices
    (sliced(layers(A)), "expected the base '.*/base' among them"),
    (SLERP | sliced(A, B), r"layer_range: expected \[FIRST, LAST\]"),
    (SLERP | sliced(layers(A, 3, 1), layers(B)), "layer_range: .*0 <= FIRST < LAST"),
    (
        SLERP | sliced(layers(A, 1, 5), layers(B)),
        r"layer_range \[1, 5\] of '.*/a' goes beyond its 4 layers",
    ),
    (
        SLERP | sliced(layers(A, 0, 3), layers(B)),
        r"expected as many layers of each, found \[3, 4\]",
    ),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[words for _, words in REFUSED])
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
        *("- 1", "", "\x00"),
    ],
)
def test_a_damaged_file_ends_in_one_sentence(folder: Path, text: str) -> None:
    (folder / "damaged.yml").write_text(text)
    with pytest.raises(SpecError) as caught:
        read_mergekit(folder / "damaged.yml")
    assert "\n" not in str(caught.value)


def test_what_mergekit_passes_over_is_told(folder: Path) -> None:
    (folder / "told.yml").write_text(yaml.safe_dump(GOOD | of(BASE | weight(0.3), A)))
    (notice,) = read_mergekit(folder / "told.yml").notices
    assert "models.0.parameters.weight has no effect, as in mergekit" in notice


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "slerp", "linear_layers"])
def test_pieces_and_memory_change_nothing(
    folder: Path, ours: dict[str, dict[str, Tensor]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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
