"""What a tint layer learned: what is told of it, and how the page looks in a real browser."""

from __future__ import annotations

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import tintray
from tests.answers import call
from tests.browser import OVERLAPS, Page, screenshots
from tests.jobs.test_report import HOSTILE, SIZES, tab
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.watching.explained_page import explained_page
from tintray.jobs.watching.explaining import Explanation
from tintray.jobs.watching.subject import Subject
from tintray.tinting.self_labels import predict
from tintray.vectors.task_vectors import DOWN, UP

__all__ = ["tab"]  # a fixture

SITES = [{"site": "vit.layers.1", "rank": 2}, {"site": "head"}]


@pytest.fixture(scope="module")
def merge(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> tintray.Merge:
    """A merge with products in a block, and heads that learned: all that can be told."""
    fit = {"rounds": 8, "tint_lr": 0.02}
    store = tmp_path_factory.mktemp("store")
    return tintray.run(tiny.spec(store, fit=fit, tint={"sites": SITES}))


@pytest.fixture(scope="module")
def found(merge: tintray.Merge) -> Explanation:
    return merge.explain("five", nearest=1)


def test_it_is_told_against_expert_and_backbone(merge: tintray.Merge, found: Explanation) -> None:
    expert = Subject.of(merge, "five", 40).expert.state_dict()
    tinted = merge.for_task("five").state_dict()
    drifts = {drift.tensor: drift for drift in found.tensors}
    for name, drift in drifts.items():
        gap = float((tinted[name] - expert[name]).norm() / expert[name].norm())
        assert drift.from_expert == pytest.approx(gap, rel=1e-4)
        assert (drift.shared, drift.from_shared is None) == (
            (None, True) if name.startswith("classifier.") else ("backbone", False)
        )
    assert {"vit.layers.1.attention.q_proj.weight", "classifier.weight"} < drifts.keys()
    assert [(head.attention, len(head.from_shared)) for head in found.heads] == [
        ("vit.layers.1.attention", 2)
    ]
    told = [len(of.directions) for of in found.tensors if of.tensor.endswith("_proj.weight")]
    assert told == [5] * 4


def test_layers_before_the_tint_see_alike(found: Explanation) -> None:
    by_layer = {of.layer: of for of in found.features}
    assert list(by_layer)[:2] == ["vit.embeddings", "vit.layers.0"]
    assert by_layer["vit.layers.0"].backbone_tinted == pytest.approx(1, abs=1e-6)
    later = by_layer["vit.layers.1"].backbone_tinted
    assert later is not None and later < 0.9999


def test_changes_are_those_of_the_answers(merge: tintray.Merge, found: Explanation) -> None:
    """The same shares from the models themselves; each example that is shown is what it says."""
    known = Subject.of(merge, "five", 40)
    said = {}
    for name, module in known.modules.items():
        outputs = predict(module, known.pool)
        assert isinstance(outputs, Tensor)
        said[name] = outputs.argmax(-1)
    changes, moved = found.changes, said["tinted"] != said["backbone"]
    assert changes.agreement == pytest.approx(_share(said["tinted"] == said["expert"]))
    assert changes.agreement_without == pytest.approx(_share(said["backbone"] == said["expert"]))
    assert (changes.examples, changes.changed) == (int(moved.sum()), pytest.approx(_share(moved)))
    assert changes.examples >= changes.gained + changes.lost and changes.shown
    rows = known.pool.rows.tolist()
    for one in changes.shown:
        at = rows.index(one.row)
        for name, classes in said.items():
            assert one.said[name].startswith(f"{classes[at]} (")
        with np.load(tiny_file(merge)) as arrays:
            expected = arrays["x_train"][one.row]
        assert one.image is not None
        raw = base64.b64decode(one.image.removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw))), expected)


def tiny_file(merge: tintray.Merge) -> str:
    """The file of the task's pool."""
    return merge.task("five").pool.path.removeprefix("file://")


def _share(same: Tensor) -> float:
    return float(same.float().mean())


def test_a_tint_that_is_the_same_could_be_shared(tiny: TinyZoo, tmp_path: Path) -> None:
    """Two tasks of one expert and one pool have one tint, where nothing of it is learned."""
    document = tiny.job(tmp_path / "store", tasks=["five", "two"], tint={"learned": False})
    document["tasks"].append({**tiny.task("five"), "name": "twin"})
    found = tintray.run(parse_spec(document, folder=tiny.folder)).explain("five")
    assert [(swap.task, swap.distance, swap.could_share) for swap in found.swaps] == [
        ("twin", 0, True)
    ]
    assert "tints of other shapes, which cannot be exchanged with this one: two" in found.notes
    assert all(drift.from_expert == 0 for drift in found.tensors)


def test_two_tints_are_exchanged_both_ways(merge: tintray.Merge, found: Explanation) -> None:
    """As whoever puts one tint's products into the other's model by hand."""
    measured = [swap for swap in found.swaps if swap.here is not None]
    assert len(found.swaps) == 3 and [swap.distance for swap in found.swaps] == sorted(
        swap.distance for swap in found.swaps
    )
    (swap,) = measured
    assert swap == found.swaps[0]
    for own, other, told in (("five", swap.task, swap.here), (swap.task, "five", swap.there)):
        known, tint = Subject.of(merge, own, 40), merge.tint(other)
        module = merge.for_task(own)
        for name in tint:
            if name.endswith(UP):
                weight = name.removesuffix(UP)
                product = tint[name] @ tint[weight + DOWN]
                module.get_parameter(weight).data = merge.backbone[weight] + product
        answers = [predict(of, known.pool) for of in (module, known.expert)]
        same = [of.argmax(-1) for of in answers if isinstance(of, Tensor)]
        assert told == pytest.approx(_share(same[0] == same[1]))


@pytest.mark.parametrize("many", [False, True])
def test_the_page_in_a_browser(many: bool, found: Explanation, tab: Page, tmp_path: Path) -> None:
    """By day and by night, on a phone and on a laptop; texts of any length beside images."""
    if many:
        one = replace(
            found.changes.shown[0], image=None, text=f"{HOSTILE} " * 40, closer=0.5, changed=0.6
        )
        found = replace(
            found,
            task="a-task-with-a-name-as-long-as-people-make-them",
            tensors=[replace(found.tensors[0], tensor=f"{n}.{HOSTILE}") for n in range(60)],
            changes=replace(found.changes, shown=[one] * 12),
            notes=[HOSTILE],
        )
    path, shots = tmp_path / "explained.html", screenshots(tmp_path)
    path.write_text(explained_page(found), encoding="utf-8")
    for width, dark in SIZES:
        tab.requests.clear()
        tab.open(path, width, dark=dark)
        tab.screenshot(shots / f"explained-{many}-{width}-{'dark' if dark else 'light'}.png")
        assert tab.evaluate(OVERLAPS) == []
        assert {url for url in tab.requests if not url.startswith("data:")} == {path.as_uri()}
    assert tab.evaluate("document.title") == f"{found.of}: {found.task}"
    assert tab.evaluate("document.querySelectorAll('script').length") == 0
    images = "[...document.images].map(one => one.naturalWidth)"
    assert tab.evaluate(images) == ([] if many else [16] * len(found.changes.shown))


def test_forms(merge: tintray.Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("explain", merge.url, "--task", "five", "--examples", 8, "--nearest", 0)
    document = call(*asked, "--format", "json").document
    assert (document["of"], document["task"], document["examples"]) == ("tiny/v1", "five", 8)
    assert document == call(*asked, "--json").document
    assert call(*asked, "--format", "html").out == f"{tmp_path / 'tiny-v1-five.html'}\n"
    shown = call(*asked).out
    assert "vit.layers.1.attention" in shown and "could share" in shown
    call(*asked, "-o", "five.txt")
    assert Path("five.txt").read_text().strip() == shown.strip()
    assert "does not exist" in call(*asked, "-o", "no/five.html").sentence


def test_what_is_gone_is_named(tiny: TinyZoo, tmp_path: Path) -> None:
    zoo = tiny.copy(tmp_path / "zoo")
    merge = tintray.run(zoo.spec(tmp_path / "store", tasks=TASKS[:2]))
    asked = ("explain", merge.url, "--store", tmp_path / "store", "--task")
    assert "did you mean 'two'" in call(*asked, "twoo").sentence
    shutil.rmtree(zoo.folder / "three")
    shutil.copytree(zoo.folder / "four", zoo.folder / "three")
    assert "three is another model than when the merge was made" in call(*asked, "three").sentence
    shutil.rmtree(zoo.folder / "three")
    assert "the expert of task 'three'" in call(*asked, "three").sentence
    notes = call(*asked, "two", "--json").document["notes"]
    assert any(note.startswith("'three' was not exchanged: the expert of") for note in notes)
    zoo.replace_arrays("two", x_train=zoo.arrays("two")["x_train"][::-1])
    assert "is not what the merge was published with" in call(*asked, "two").sentence
