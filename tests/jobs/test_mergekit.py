"""mergekit's YAML: read for what it means here, refused where it means something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tintray.jobs.cli import main
from tintray.jobs.spec.mergekit import read_mergekit
from transformers import ViTForImageClassification

from tests.tiny_zoo import TinyZoo
from tintray.errors import SpecError


def write(folder: Path, **fields: Any) -> Path:
    for name in ("base", "a", "b"):
        (folder / name).mkdir(exist_ok=True)
    document = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "base"}, {"model": "a"}, {"model": "b"}],
    }
    kept = {key: value for key, value in (document | fields).items() if value is not None}
    path = folder / "mergekit.yaml"
    path.write_text(yaml.safe_dump(kept))
    return path


def own(**parameters: Any) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": parameters} for name in ("a", "b")]


READ: dict[str, tuple[dict[str, Any], tuple[str, tuple[str, ...], float | None]]] = {
    "sum": ({"models": own(weight=0.4)}, ("task_arithmetic", (), 0.4)),
    "normalised sum": ({"parameters": {"normalize": True}}, ("task_arithmetic", (), 0.5)),
    "mean": (
        {"merge_method": "linear", "base_model": None, "models": own()},
        ("average", (), None),
    ),
    "ties": (
        {"merge_method": "ties", "models": own(density=0.3), "parameters": {"lambda": 0.8}},
        ("ties", ("density=0.3",), 0.8),
    ),
    "dare": (
        {"merge_method": "dare_linear", "parameters": {"density": 0.25, "weight": 0.5}},
        ("dare", ("drop=0.75",), 0.5),
    ),
    "breadcrumbs": (
        {"merge_method": "breadcrumbs", "parameters": {"density": 0.5, "gamma": 0.125}},
        ("breadcrumbs", ("smallest=0.375", "largest=0.125"), 1.0),
    ),
    "slerp": (
        {"merge_method": "slerp", "models": own()[:1], "parameters": {"t": 0.25}},
        ("slerp", ("t=0.25",), None),
    ),
    "stock": ({"merge_method": "model_stock"}, ("model_stock", (), None)),
}


@pytest.mark.parametrize(("fields", "expected"), READ.values(), ids=READ.keys())
def test_what_a_file_means(tmp_path: Path, fields: Any, expected: Any) -> None:
    found = read_mergekit(write(tmp_path, **fields))
    assert (found.method, found.parameters, found.scale) == expected
    places = ["base", "a"] if found.method == "slerp" else ["a", "b"]
    assert found.experts == tuple(str(tmp_path / place) for place in places)


REFUSED = {
    "a method": ({"merge_method": "ti"}, "expected one of linear.*did you mean 'ties'"),
    "slices": ({"slices": []}, "'slices' is not read here"),
    "weights that differ": (
        {"models": [{"model": n, "parameters": {"weight": w}} for n, w in (("a", 1), ("b", 2))]},
        r"weight: expected the same for every model, found \[1, 2\]",
    ),
    "a gradient": ({"parameters": {"weight": [0, 1]}}, r"one number .* found \[0, 1\]"),
    "a sum of what agrees": ({"merge_method": "dare_ties"}, "averaged here, not added"),
    "no base": ({"base_model": None}, "base_model: task_arithmetic works on task vectors"),
    "another type": ({"dtype": "float16"}, "dtype: .* found 'float16'"),
    "no such model": ({"models": [{"model": "c/d/e"}]}, "'c/d/e', which does not exist"),
}


@pytest.mark.parametrize(("fields", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(tmp_path: Path, fields: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_mergekit(write(tmp_path, **fields))


def test_run_from_mergekit(tiny: TinyZoo, tmp_path: Path) -> None:
    """Half of one task vector, by the command line: θ₀ + ½ τ."""
    base = ViTForImageClassification.from_pretrained(tiny.folder / "base")
    other = ViTForImageClassification.from_pretrained(tiny.folder / "base")
    with torch.no_grad():
        other.classifier.bias += 1
    for name, module in (("base", base), ("a", other)):
        module.save_pretrained(tmp_path / name)
    models = [{"model": "a", "parameters": {"weight": 0.5}}]
    path = write(tmp_path, models=models)
    output = tmp_path / "merged"
    assert main(["run", "--from-mergekit", str(path), "--output", str(output)]) == 0
    found = load_file(output / "model.safetensors")["classifier.bias"]
    assert torch.allclose(found, base.classifier.bias + 0.5)
    for wrong in (["run"], ["run", "job.yaml", "--from-mergekit", str(path)]):
        assert main(wrong) == 2
