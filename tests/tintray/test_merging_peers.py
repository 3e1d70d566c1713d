"""Every data-free method agrees with an independent implementation, on the same checkpoints.

Where ``TINTRAY_PEERS_PYTHON`` names an interpreter that has mergekit 0.1.5, fusion-bench 0.2.33 and
peft, they run now and every number is compared. Everywhere, two numbers per tensor that such a run
gave are compared with those on record; ``TINTRAY_PEERS_RECORD=1`` writes the record anew.

PCB and LiNeS are in none of the three: they are compared with their formulas written naively.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import peers
from tintray.merging import Layer, recipe
from tintray.merging.algorithms.masks import masses
from tintray.merging.algorithms.sparse import drop_and_rescale
from tintray.merging.apply import depths, directions

SETTINGS = {
    "ties": {"density": 0.2},
    "breadcrumbs": {"smallest": 0.25, "largest": 0.25},
    "karcher": {"steps": 50},
    "iso_cts": {"common": 0.8},
    "wudi": {"steps": 300, "rate": 1e-5},
    "consensus": {"sparsity": 0.4, "least": 2},
    "regmean": {"off_diagonal": 0.9},
}
PLAIN = [*peers.MERGEKIT, "slerp", "tsv_m", "iso_c", "iso_cts", "wudi", "magmax", "consensus"]


@dataclass(frozen=True)
class Checkpoints:
    folder: Path
    base: dict[str, Tensor]
    vectors: dict[str, Tensor]  # [K, …]

    def layer(self, name: str, tasks: int = 3) -> Layer:
        where = depths(self.base)
        vectors = self.vectors[name][:tasks]
        return Layer(name, self.base[name], vectors, peers.EXPERTS[:tasks], where[name])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    folder = tmp_path_factory.mktemp("peers")
    peers.make_checkpoints(folder)
    base = load_file(folder / "base" / "model.safetensors")
    experts = [load_file(folder / name / "model.safetensors") for name in peers.EXPERTS]
    vectors = {n: torch.stack([expert[n] - base[n] for expert in experts]) for n in base}
    return Checkpoints(folder, base, vectors)


@pytest.fixture(scope="module")
def live(given: Checkpoints) -> dict[str, Tensor]:
    """What the peers give now: "case/tensor" to tensor."""
    found = peers.run_peers("methods", given.folder)
    if os.environ.get("TINTRAY_PEERS_RECORD"):
        kept = {name: sketch(tensor) for name, tensor in found.items() if "dare" not in name}
        peers.record("methods", kept)
    return found


def sketch(tensor: Tensor) -> list[float]:
    return peers.sketch([tensor], (1.0, 1.7))


@pytest.fixture(scope="module")
def merged(given: Checkpoints) -> dict[str, Tensor]:
    """The same cases by tintray's methods."""
    grams = peers.gram_matrices(given.base)
    found: dict[str, Tensor] = {}
    for name, base in given.base.items():
        # fusion-bench, like the released code of TIES, keeps one entry more than its share says.
        one_more = {"density": (int(0.2 * base.numel()) + 1) / base.numel()}
        recipes = {case: recipe(case, SETTINGS.get(case)) for case in (*PLAIN, "regmean")}
        for case, with_ in (recipes | {"ties (fusion-bench)": recipe("ties", one_more)}).items():
            layer = given.layer(name, with_.method.most or 3)
            if case == "regmean" and name in grams:
                layer = replace(layer, statistics={"gram": grams[name]})
            scale = with_.method.start(len(layer.vectors))
            found[f"{case}/{name}"] = base + scale * directions(layer, with_).sum(0)
        for case in ("ties", "task_arithmetic"):
            found[f"{case} (peft)/{name}"] = found[f"{case}/{name}"]
        own = recipe("tall_masks").method.own(given.layer(name), sparsity=0.4)
        for expert, delta in zip(peers.EXPERTS, own, strict=True):
            found[f"tall_masks/{expert}.{name}"] = base + delta
    every = torch.cat([given.vectors[n].reshape(3, -1) for n in sorted(given.base)], dim=1)
    whole = Layer("all", torch.zeros(every.shape[1]), every, peers.EXPERTS)
    modulated = recipe("emr").method.own(replace(whole, totals=masses(whole)))
    return found | {f"emr/{e}": delta for e, delta in zip(peers.EXPERTS, modulated, strict=True)}


CASES = sorted({name.partition("/")[0] for name in peers.record("methods")})


def test_the_record_covers_every_data_free_method() -> None:
    assert {*PLAIN, "regmean", "tall_masks", "emr"} == {case.split()[0] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_a_method_agrees_with_what_peers_gave(case: str, merged: dict[str, Tensor]) -> None:
    record = peers.record("methods")
    for name in (name for name in record if name.startswith(f"{case}/")):
        found = sketch(merged[name])
        np.testing.assert_allclose(found, record[name], rtol=2e-4, atol=2e-4, err_msg=name)


def test_methods_agree_with_peers_that_run_now(
    live: dict[str, Tensor], merged: dict[str, Tensor]
) -> None:
    compared = [name for name in live if "dare" not in name]
    for name in compared:
        found, expected = merged[name], live[name]
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4, msg=name)
    assert len(compared) > 300


def test_dare_agrees_with_peft_given_the_same_mask(
    live: dict[str, Tensor], given: Checkpoints
) -> None:
    for k, expert in enumerate(peers.EXPERTS):
        for name, vectors in given.vectors.items():
            theirs = live[f"dare (peft)/{expert}.{name}"]
            kept = (theirs != 0).float()
            assert 0 < float(kept.mean()) < 1 or theirs.numel() < 30
            torch.testing.assert_close(drop_and_rescale(vectors[k], kept, 0.6), theirs)


# -- methods that no peer has, by their formulas -----------------------------------------------


def test_pcb_is_its_formula(given: Checkpoints) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    vectors = given.vectors[name].reshape(3, -1).double().numpy()
    scores = np.zeros_like(vectors)
    for k, own in enumerate(vectors):
        intra = np.exp(3 * own**2 / (own**2).max())
        inter = np.zeros_like(own)
        for other in vectors:
            product = own * other
            exponential = np.exp(product / np.abs(product).max())
            inter += exponential / exponential.sum()
        scores[k] = intra / intra.sum() * inter
        kept = int(0.1 * len(own))
        scores[k][scores[k] < np.sort(scores[k])[-kept]] = 0
    whole = scores.sum(0)
    expected = np.where(whole > 0, (scores * vectors).sum(0) / np.where(whole > 0, whole, 1), 0)
    found = directions(given.layer(name), recipe("pcb", {"keep": 0.1})).sum(0)
    np.testing.assert_allclose(found.reshape(-1).numpy(), expected, atol=1e-6)


def test_lines_is_its_formula(given: Checkpoints) -> None:
    lines = recipe("lines", {"shallow": 0.2})
    ramp = {"model.embed_tokens.weight": 0.2, "lm_head.weight": 1.0, "model.norm.weight": 1.0}
    ramp |= {f"model.layers.{b}.mlp.up_proj.weight": 0.2 + 0.8 * (b + 1) / 2 for b in range(2)}
    for name, factor in ramp.items():
        found = directions(given.layer(name), lines)
        torch.testing.assert_close(found, factor * given.vectors[name])
