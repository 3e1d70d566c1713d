"""What every merging method promises, and what each of them is."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workbench import dense_task_vectors
from tintray.errors import SpecError
from tintray.merging import Layer, Parameter, Recipe, method, methods, recipe, registry
from tintray.merging.algorithms.masks import elected
from tintray.merging.algorithms.spectral import decompose, pack
from tintray.merging.apply import depths, direct, directions, layers
from tintray.numerics.layout import build_layout

ALL = list(methods())
SHAPES = {"matrix": (12, 8), "wide": (6, 20), "vector": (8,), "kernel": (4, 3, 2, 2)}
TASKS = ("first", "second", "third")


def layer(shape: tuple[int, ...] = (12, 8), tasks: int = 3, **known: object) -> Layer:
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(shape, generator=generator)
    vectors = 0.1 * torch.randn(tasks, *shape, generator=generator)
    made = Layer("model.layers.1.weight", base, vectors, TASKS[:tasks], depth=0.5)
    statistics = {"fisher": torch.rand(tasks, *shape, generator=generator)}
    statistics["featcal"] = 0.2 * torch.randn(1, *shape, generator=generator)
    if len(shape) == 2:
        inputs = torch.randn(tasks, 30, shape[1], generator=generator)
        statistics["gram"] = inputs.mT @ inputs / 30
    return replace(made, statistics=statistics, **known)  # type: ignore[arg-type]


def few(name: str) -> int:
    return methods()[name].most or 3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ALL)
def test_directions_are_finite_repeatable_and_of_the_order_of_tasks(
    name: str, shape: tuple[int, ...]
) -> None:
    given = layer(shape, few(name))
    inputs = [given.base, given.vectors, *given.statistics.values()]
    before = [tensor.clone() for tensor in inputs]
    found = directions(given, recipe(name))
    assert all(torch.equal(*pair) for pair in zip(before, inputs, strict=True)), "changed its input"
    assert (found.shape, found.dtype) == (given.vectors.shape, torch.float32)
    assert torch.isfinite(found).all()
    assert torch.equal(found, directions(given, recipe(name)))
    order = [2, 0, 1] if few(name) == 3 else [1, 0]
    statistics = {k: of[order] if len(of) > 1 else of for k, of in given.statistics.items()}
    tasks = tuple(TASKS[k] for k in order)
    moved = replace(given, vectors=given.vectors[order], tasks=tasks, statistics=statistics)
    turned = directions(moved, recipe(name))
    scale = float(found.abs().max())
    torch.testing.assert_close(turned.sum(0), found.sum(0), atol=2e-5 * scale, rtol=1e-4)
    torch.testing.assert_close(turned, found[order], atol=1e-3 * scale, rtol=1e-2)
    given.vectors[0] = 0  # a task that learned nothing must not make a division by zero
    assert torch.isfinite(directions(given, recipe(name))).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", [n for n in ALL if methods()[n].expert_at is not None])
def test_one_task_at_scale_one_is_the_expert(name: str, shape: tuple[int, ...]) -> None:
    given = layer(shape, 1)
    promised = recipe(name, methods()[name].expert_at)
    torch.testing.assert_close(directions(given, promised), given.vectors, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in ALL if methods()[n].own is not None])
def test_one_task_on_its_own_backbone_is_the_expert(name: str) -> None:
    given, known = layer(tasks=1), methods()[name]
    given = replace(given, totals=known.totals and known.totals(given))
    torch.testing.assert_close(known.own(given, **recipe(name).parameters), given.vectors)


@pytest.mark.parametrize("name", ["dare", "dare_ties"])
def test_random_methods_follow_seed_and_tensor(name: str) -> None:
    same = directions(layer(), recipe(name))
    for other in ({"seed": 1}, {"name": "model.layers.2.weight"}):
        assert not torch.equal(same, directions(replace(layer(), **other), recipe(name)))


@pytest.mark.parametrize("name", [n for n in ALL if methods()[n].elementwise])
def test_elementwise_methods_can_be_cut_into_pieces(name: str) -> None:
    whole, given = layer((40,)), recipe(name)
    rule = given.method.thresholds
    alone = [replace(whole, vectors=whole.vectors[k : k + 1]) for k in range(3)]
    thresholds = rule and torch.cat([rule(one, **given.parameters) for one in alone])
    pieces = [
        replace(
            whole,
            base=whole.base[cut],
            vectors=whole.vectors[:, cut],
            statistics={kind: of[:, cut] for kind, of in whole.statistics.items()},
            thresholds=thresholds,
        )
        for cut in (slice(0, 13), slice(13, 40))
    ]
    found = torch.cat([directions(piece, given) for piece in pieces], dim=1)
    assert torch.equal(found, directions(whole, given))


# What each method is


@pytest.mark.parametrize(
    ("name", "parameters", "vectors", "expected"),
    [
        # kept: 4 and 3 of the first, -5 and -4 of the second; at the third -4 outweighs 3
        ("ties", {"density": 0.5}, [[4, -1, 3, 0.5], [2, -5, -4, 0.1]], [4, -5, -4, 0]),
        # something of the smallest tensor
        ("ties", {"density": 0.2}, [[1, -2, 0.5]], [0, -2, 0]),
        (
            "breadcrumbs",
            {"smallest": 0.5, "largest": 0.2},
            [[1, -2, 3, -4, 5, 6, -7, 8, 9, 10]],
            [0, 0, 0, 0, 0, 6, -7, 8, 0, 0],
        ),
    ],
)
def test_what_is_trimmed(
    name: str, parameters: dict[str, float], vectors: list[list[float]], expected: list[float]
) -> None:
    given = Layer(
        "x", torch.zeros(len(expected)), torch.tensor(vectors).float(), TASKS[: len(vectors)]
    )
    assert directions(given, recipe(name, parameters)).sum(0).tolist() == expected


def test_dare_keeps_the_sum_on_average() -> None:
    given = Layer("x", torch.zeros(20_000), torch.ones(1, 20_000), ("a",))
    found = directions(given, recipe("dare", {"drop": 0.75}))
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert abs(float(found.mean()) - 1) < 0.05


def test_emr_tasks_keep_their_own_mass_of_what_is_elected() -> None:
    """The rescaler gives each task's modulation the L1 norm of its task vector."""
    given, emr = layer(), methods()["emr"]
    assert emr.totals is not None and emr.own is not None
    own = emr.own(replace(given, totals=emr.totals(given)))
    torch.testing.assert_close(own.abs().sum((1, 2)), given.vectors.abs().sum((1, 2)))
    assert (own * given.vectors >= 0).all()
    torch.testing.assert_close(directions(given, recipe("emr")).sum(0), elected(given.vectors))


def test_iso_c_flattens_the_spectrum_of_the_sum() -> None:
    given = layer()
    merged = directions(given, recipe("iso_c")).sum(0)
    values = torch.linalg.svdvals(merged)
    mean = torch.linalg.svdvals(given.vectors.sum(0)).mean()
    torch.testing.assert_close(values, mean.expand_as(values), atol=1e-5, rtol=1e-4)


def test_tsv_tasks_get_directions_orthogonal_to_each_other() -> None:
    first, second, third = directions(layer(), recipe("tsv_m"))
    for left, right in ((first, second), (first, third), (second, third)):
        assert float((left.T @ right).abs().max()) < 1e-5
        assert float((left @ right.T).abs().max()) < 1e-5


def test_regmean_solves_the_normal_equations() -> None:
    given = layer()
    grams = given.statistics["gram"]
    merged = directions(given, recipe("regmean", {"off_diagonal": 1})).sum(0)
    expected = torch.linalg.solve(grams.sum(0), (given.vectors @ grams).sum(0).T).T
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)


def test_esm_is_the_orthogonal_product_of_what_moves_answers_most() -> None:
    """As its source computes it: from the answers themselves, and factor by factor."""
    given, random = layer(), torch.Generator().manual_seed(3)
    inputs = torch.randn(3, 50, 8, generator=random)
    sizes = [float(vector.norm()) for vector in given.vectors]
    left, right = [], []
    for vector, rows, size in zip(given.vectors, inputs, sizes, strict=True):
        _, values, directions_ = torch.linalg.svd(rows @ vector.T)
        basis, flat = directions_[:4].T, (values[:4] ** 2 / (values[:4] ** 2).mean()) ** 0.15
        flat = flat / flat.mean()
        left.append(basis * flat)
        right.append(flat[:, None] * (basis.T @ vector) * size**2)
    stacked = torch.cat(right) / (sum(sizes) / 3) ** 2
    columns = stacked.norm(dim=0)
    parts = []
    for stack in (torch.cat(left, 1), stacked * (columns / columns.mean()) ** 2):
        u, s, v = torch.linalg.svd(stack, full_matrices=False)
        parts.append(s.mean() * u @ v)
    given = replace(given, statistics={"gram": inputs.mT @ inputs / 50})
    merged = directions(given, recipe("esm")).sum(0)
    torch.testing.assert_close(merged, 2 * parts[0] @ parts[1], atol=1e-5, rtol=1e-3)


def test_wudi_lessens_the_interference() -> None:
    given = layer()

    def interference(merged: Tensor) -> float:
        each = (merged - given.vectors) @ given.vectors.mT
        return float((each.square().sum((1, 2)) / given.vectors.square().sum((1, 2))).sum())

    found = directions(given, recipe("wudi", {"rate": 1e-3})).sum(0)
    assert interference(found) < 0.5 * interference(given.vectors.sum(0))


def test_karcher_of_two_experts_of_one_norm_is_slerp() -> None:
    given = layer(tasks=2)
    experts = given.base + given.vectors
    experts = experts / experts.flatten(1).norm(dim=1)[:, None, None]
    given = replace(given, vectors=experts - given.base)
    means = [directions(given, recipe(name)).sum(0) for name in ("slerp", "karcher")]
    torch.testing.assert_close(*means, atol=1e-6, rtol=1e-4)


def test_measured_decompositions_change_nothing() -> None:
    given = layer()
    each = {"svd": pack(*decompose(given.vectors))}
    of_sum = {"svd_sum": pack(*decompose(given.vectors.sum(0)))[None]}
    for name, statistics in (("tsv_m", each), ("iso_c", of_sum), ("iso_cts", of_sum)):
        measured = directions(replace(given, statistics=statistics), recipe(name))
        torch.testing.assert_close(measured, directions(given, recipe(name)))


def test_depth_grows_from_embeddings_to_the_last_block() -> None:
    names = ["embed.weight", "layers.0.w", "layers.1.w", "layers.3.w", "norm.weight"]
    assert list(depths(names).values()) == [0.0, 0.25, 0.5, 1.0, 1.0]


# A whole model in memory


@pytest.mark.parametrize("name", ["lines", "emr"])
def test_directions_replace_task_vectors_tensor_by_tensor(name: str) -> None:
    layout = build_layout({"embed.w": (5, 4), "layers.0.w": (6, 4), "layers.1.b": (6,)})
    generator = torch.Generator().manual_seed(3)
    base, matrix = (torch.randn(*n, layout.numel, generator=generator) for n in ((), (3,)))
    given = dense_task_vectors(layout, TASKS, base, matrix)
    each = list(layers(given, recipe(name)))
    expected = torch.cat([directions(one, recipe(name)).flatten(1) for _, one in each], dim=1)
    assert torch.equal(direct(given, recipe(name)).matrix, expected)
    if name == "emr":  # its totals are of the whole model
        for _, one in each:
            torch.testing.assert_close(one.totals[:, 0].float(), matrix.abs().sum(1))


# The registry


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("tise", {}, ["no merging method 'tise'", "did you mean 'ties'?"]),
        ("ties", {"densty": 0.1}, ["no such parameter", "did you mean 'density'?"]),
        ("ties", {"density": 0}, ["merge.parameters.density", "(0, 1]", "found 0"]),
        ("ties", {"density": True}, ["a number in (0, 1]", "found True"]),
        ("dare", {"drop": 1.0}, ["[0, 1)", "found 1.0"]),
        ("wudi", {"steps": 2.5}, ["a whole number", "found 2.5"]),
        ("average", {"density": 1}, ["it has none"]),
    ],
)
def test_a_recipe_refuses_what_it_does_not_know(
    name: str, parameters: Mapping[str, float], said: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        recipe(name, parameters)
    assert all(part in str(caught.value) for part in said), caught.value


def test_a_declaration_must_fit_its_function() -> None:
    with pytest.raises(TypeError, match="takes"):

        @method("odd", summary=".", source="-", parameters=[Parameter("a", 1, 0, 1, "")])
        def odd(layer: Layer) -> Tensor:
            return layer.vectors


# Plugins


@method("halved", summary="Half the sum.", source="-", scale=0.5, elementwise=True)
def halved(layer: Layer) -> Tensor:
    return layer.vectors


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that an entry point of the group names; it is empty."""
    module = ModuleType("tintray_test_plugin")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = EntryPoint("plugin", module.__name__, registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    registry.methods.cache_clear()
    yield module
    registry.methods.cache_clear()


def test_a_plugin_brings_methods_under_names_of_their_own(
    plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match=r"'tintray_test_plugin' of .* holds no method"):
        registry.methods()
    plugin.__dict__["halved"] = halved
    assert Recipe("halved").method is halved
    registry.methods.cache_clear()
    plugin.__dict__["ties"] = replace(halved, name="ties")
    with pytest.raises(SpecError, match="a method 'ties', which exists already"):
        registry.methods()
    monkeypatch.setitem(sys.modules, plugin.__name__, None)  # an import of it fails
    with pytest.raises(SpecError, match=r"the plugin 'tintray_test_plugin' .* cannot be loaded"):
        registry.methods()


# The documentation


def test_every_method_is_documented_and_the_example_is_one() -> None:
    folder = Path(__file__).parents[2] / "docs"
    text = (folder / "methods.md").read_text(encoding="utf-8")
    for name, known in methods().items():
        assert f"| [`{name}`](algorithms/{name}.md) | {known.summary} |" in text
        page = (folder / f"algorithms/{name}.md").read_text(encoding="utf-8")
        assert re.match(rf"# {name}\n\n    .*\n(.|\n)+\n## When should I take it\?\n", page), name
        assert known.summary.endswith(".")
        assert known.source
        assert known.complete({}).keys() == {parameter.name for parameter in known.parameters}
    names: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    given = layer((7,))
    merged = names["median"].directions(given).sum(0)
    torch.testing.assert_close(merged, given.vectors.median(0).values)
