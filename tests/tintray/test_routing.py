"""Telling tasks apart by their inputs: features, densities, calibration, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tintray.errors import InputError, IntegrityError
from tintray.pools.pool import Pool
from tintray.routing.features import _FINE as FINE
from tintray.routing.features import _SIGNED as SIGNED
from tintray.routing.features import _placed as placed
from tintray.routing.features import features, form_of
from tintray.routing.pools import pool_features, routing_of
from tintray.routing.router import Router
from tintray.routing.statistics import TaskStatistics


def images(kind: str, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Noise, the same in gray, or stripes: data sets that differ in texture alone."""
    noise = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) / 3
    if kind == "gray":
        noise = noise.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    if kind == "stripes":
        noise = noise / 4 + torch.tensor([-1.0, 1.0]).repeat(8)
    return {"pixel_values": noise}


def texts(words: range, count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(words.start, words.stop, (count, 12), generator=generator)
    lengths = torch.randint(4, 13, (count, 1), generator=generator)
    return {"input_ids": tokens, "attention_mask": (torch.arange(12) < lengths).long()}


POOLS = {
    "images": {name: (images, name) for name in ("colour", "gray")},
    "texts": {"low": (texts, range(50)), "high": (texts, range(40, 90))},
}
FOREIGN = {"images": images("stripes", 50, 9), "texts": texts(range(500, 600), 50, 9)}


@pytest.mark.parametrize("form", POOLS)
def test_examples_go_to_their_task_and_foreign_ones_to_none(form: str) -> None:
    made: dict[str, tuple[Any, Any]] = POOLS[form]
    router = Router.fit({name: features(make(of, 300)) for name, (make, of) in made.items()})
    for name, (make, of) in made.items():
        routes = router.route(features(make(of, 200, seed=1)))
        right = [route.nearest[0][0] == name for route in routes]
        assert sum(right) / 200 >= 0.97
        sure = sum(route.confidence for route in routes) / 200
        assert abs(sure - sum(right) / 200) < 0.04  # as sure as it is right
        assert sum(route.task is None for route in routes) / 200 <= 0.05
    foreign = router.route(features(FOREIGN[form]))
    assert sum(route.task is None for route in foreign) >= 45
    assert max(route.familiarity for route in foreign if route.task is None) < 0.05


def test_how_surely_the_likeliest_task_answers_counts_beside_its_input() -> None:
    router = Router.fit({name: features(images(name, 300)) for name in ("colour", "gray")})
    own = router.route(features(images("colour", 2000, seed=1)))
    stripes = router.route(features(FOREIGN["images"]))
    surer = torch.rand(len(own), generator=torch.Generator().manual_seed(0)).clamp(1e-3, 1 - 1e-3)
    judged = [router.judge(route, float(s)) for route, s in zip(own, surer, strict=True)]
    assert sum(route.task is None for route in judged) / len(own) < 0.03
    shares = torch.tensor([route.familiarity for route in judged])
    assert abs(float(shares.mean()) - 0.5) < 0.06  # again the share of the tasks' own examples
    assert all(a.nearest == b.nearest for a, b in zip(own, judged, strict=True))
    assert all(router.judge(route, 0.5).task is None for route in stripes)
    middling = min(own, key=lambda route: abs(route.familiarity - 0.05))
    assert middling.task is not None
    assert router.judge(middling, 1e-3).task is None  # neither familiar nor sure
    assert router.judge(middling, 0.9).task == "colour"


def test_two_tasks_of_the_same_images_are_said_to_share_them() -> None:
    pools = {"a": features(images("gray", 400, 1)), "b": features(images("gray", 400, 2))}
    router = Router.fit({**pools, "c": features(images("colour", 400, 3))})
    assert [pair[:2] for pair in router.shared] == [("a", "b")]
    route = router.route(features(images("gray", 20, 4)))[0]
    assert {name for name, _ in route.nearest[:2]} == {"a", "b"} and route.confidence < 0.9


def test_padding_and_the_batch_change_nothing() -> None:
    batch = texts(range(30), 8)
    wider = {name: torch.nn.functional.pad(t, (0, 5)) for name, t in batch.items()}
    assert torch.equal(features(batch), features(wider))
    one = images("colour", 8)["pixel_values"]
    alone = torch.cat([features({"pixel_values": row[None]}) for row in one])
    assert torch.equal(alone, features({"pixel_values": one}))


def test_what_is_kept_routes_as_what_was_computed() -> None:
    pools = {name: features(images(name, 300)) for name in ("colour", "gray")}
    known = {name: TaskStatistics.of(pool) for name, pool in pools.items()}
    kept = {n: TaskStatistics.read(k.tensors("images-1"), n)[1] for n, k in known.items()}
    asked = features(images("colour", 50, 5))
    for before, after in zip(Router(known).route(asked), Router(kept).route(asked), strict=True):
        assert before.nearest[0][0] == after.nearest[0][0]
        assert before.confidence == pytest.approx(after.confidence, abs=0.02)


def test_a_task_is_described_by_its_own_pool_alone_in_any_order() -> None:
    """By class, for instance: what is held back must not be of one class."""
    dark, light = images("gray", 60)["pixel_values"] - 1, images("gray", 60, 1)["pixel_values"] + 1
    pool = Pool({"pixel_values": torch.cat([dark, light])}, None, None, "of two classes")
    kept = routing_of(pool)
    assert kept is not None
    known = TaskStatistics.read(kept, "a pool")[1]
    level = pool_features(pool)[:, :64].mean(0)
    assert torch.allclose(known.examples[:, :64].mean(0), level, atol=0.1)
    assert routing_of(pool[:7]) is None  # too few to hold any back


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images-1/mean": torch.zeros(3)}, "no statistics of a pool"),
        ({"images-1/variance": torch.full((533,), float("nan"))}, "no statistics of a pool"),
        ({"images-1/examples": torch.zeros(0, 533)}, "no statistics of a pool"),
        ({"images-1/count": torch.zeros(2)}, "no statistics of a pool"),
    ],
)
def test_damaged_statistics_are_refused(changed: dict[str, Tensor], said: str) -> None:
    tensors = TaskStatistics.of(features(images("gray", 40))).tensors("images-1")
    with pytest.raises(IntegrityError, match=f"a/file has {said}.*tintray add-router"):
        TaskStatistics.read(tensors | changed, "a/file")


def test_other_inputs_are_refused_in_a_sentence() -> None:
    assert form_of({"input_values": torch.zeros(2, 100)}) is None
    with pytest.raises(InputError, match=r"expected images .* found input_values \[2, 100\]"):
        features({"input_values": torch.zeros(2, 100)})
    router = Router.fit({"a": features(images("gray", 40)), "b": features(images("colour", 40))})
    with pytest.raises(InputError, match=r"expected features \[N, 533\].* found \[8, 513\]"):
        router.route(features(texts(range(9), 8)))
    with pytest.raises(InputError, match="features of one size"):
        Router.fit({"a": features(images("gray", 40)), "b": features(texts(range(9), 40))})


def test_looked_up_places_are_those_that_a_search_finds() -> None:
    """On edges, next to them and far beyond; of values as a processor makes them of bytes."""
    values = torch.arange(-510, 511) / 127.5
    values = torch.cat([values, SIGNED, SIGNED + 1e-3, SIGNED - 1e-3, torch.tensor([-9.0, 9.0])])
    assert torch.equal(placed(values, FINE).long(), torch.bucketize(values, SIGNED))
