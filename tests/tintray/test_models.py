"""Reading models: every tensor accounted for, sites in either spelling."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from tests.tiny_zoo import CLASSES, TASKS, TinyZoo
from tintray.checkpoints.model_folder import open_model_folder
from tintray.errors import CheckpointError, SpecError
from tintray.models.comparing import check_same_backbone
from tintray.models.loading import load_base, load_expert
from tintray.models.structure import (
    backbone_names,
    copy_on,
    head_modules,
    private_state,
    resolve_site,
    skeleton,
)
from tintray.numerics.sites import TintSite
from tintray.tinting.partition import partition


@pytest.fixture(scope="module")
def expert(tiny: TinyZoo) -> torch.nn.Module:
    return load_expert(open_model_folder(tiny.folder / "five"))


def test_an_expert_is_what_transformers_loads(tiny: TinyZoo, expert: torch.nn.Module) -> None:
    plain = ViTForImageClassification.from_pretrained(tiny.folder / "five").state_dict()
    found = expert.state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert not expert.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_expert_of_16_bits_stays_so_until_it_computes(
    tiny: TinyZoo, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = ViTForImageClassification.from_pretrained(tiny.folder / "five").to(dtype)
    model.save_pretrained(tmp_path)
    folder = open_model_folder(tmp_path)
    stored, whole = load_expert(folder, as_stored=True), load_expert(folder)
    assert {tensor.dtype for tensor in stored.state_dict().values()} == {dtype}
    for name, tensor in copy_on(stored, "cpu").state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, whole.state_dict()[name])
    head = private_state(stored, ("classifier",))
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in head.items())
    assert copy_on(whole, "cpu") is whole


def test_an_expert_of_two_types_is_float32(tiny: TinyZoo, tmp_path: Path) -> None:
    """As models are saved whose norms were kept in float32."""
    model = ViTForImageClassification.from_pretrained(tiny.folder / "five")
    model.vit.layers[0].to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    stored = load_expert(open_model_folder(tmp_path), as_stored=True)
    assert {tensor.dtype for tensor in stored.state_dict().values()} == {torch.float32}


def test_a_base_takes_the_class_of_the_experts_with_a_head_or_without(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    """Its own head, of six classes, is left out; its backbone is bit for bit the file's."""
    whole = ViTForImageClassification.from_pretrained(tiny.folder / "base")
    headless = ViTModel(whole.config, add_pooling_layer=False)
    headless.load_state_dict(whole.vit.state_dict())
    headless.save_pretrained(tmp_path)
    for folder, task in ((tmp_path, "two"), *((tiny.folder / "base", task) for task in TASKS)):
        base = load_base(open_model_folder(folder), like=open_model_folder(tiny.folder / task))
        for name in backbone_names(base):
            assert torch.equal(base.get_parameter(name), whole.state_dict()[name])
        assert base.config.num_labels == CLASSES[task]


def test_backbone_and_head_are_everything(expert: torch.nn.Module) -> None:
    heads = head_modules(expert)
    assert heads == ("classifier",)
    head = {name for name in expert.state_dict() if name.startswith("classifier.")}
    assert head | set(backbone_names(expert)) == set(expert.state_dict())
    assert set(private_state(expert, heads)) == head


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("head", "classifier"),
        ("classifier", "classifier"),
        ("vit.layers.1", "vit.layers.1"),
        ("vit.encoder.layer.1", "vit.layers.1"),
        ("vit.encoder.layer.1.attention.attention.query", "vit.layers.1.attention.q_proj"),
        ("vit.encoder.layer.2.output.dense", "vit.layers.2.mlp.fc2"),
        ("vit.encoder.layer.0.attention", "vit.layers.0.attention"),
    ],
)
def test_a_site_may_be_spelt_as_in_memory_or_as_on_disk(
    expert: torch.nn.Module, written: str, found: str
) -> None:
    assert resolve_site(expert, written) == (found,)


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("vit.layer.1", "did you mean 'vit.layers.1'?"),
        ("heads", "did you mean 'head'?"),
        ("vit.layers.9", "did you mean 'vit.layers."),
        ("vit.encoder.layer.9", "did you mean"),
        ("vit.layers.1.attention.q_proj.weight", "did you mean 'vit.layers.1.attention.q_proj'?"),
        ("zzz", "expected 'head' or a module path such as 'vit.layers."),
    ],
)
def test_a_site_that_is_none_is_answered_with_the_nearest(
    expert: torch.nn.Module, written: str, hint: str
) -> None:
    with pytest.raises(SpecError, match=rf"^tint\.sites: .*no module '{written}'") as raised:
        resolve_site(expert, written)
    assert hint in str(raised.value)


def test_a_path_on_disk_stands_for_exactly_its_tensors(
    tiny: TinyZoo, expert: torch.nn.Module
) -> None:
    """Whatever path the file spells: it is refused, or the site owns what lies below it there."""
    on_disk = load_file(tiny.folder / "five" / "model.safetensors")
    paths = {
        name.rsplit(".", depth)[0] for name in on_disk for depth in range(1, name.count("."))
    } - {"vit", "vit.encoder", "vit.encoder.layer"}
    assert len(paths) > 30
    for path in sorted(paths):
        try:
            (found,) = resolve_site(expert, path)
        except SpecError:
            assert path.endswith("attention.attention"), path  # no module in memory is just this
            continue
        size = sum(t.numel() for name, t in on_disk.items() if name.startswith(f"{path}."))
        private = private_state(expert, (found,))
        assert sum(tensor.numel() for tensor in private.values()) == size, (path, found)


@pytest.mark.parametrize(
    ("site", "count"), [("norms", 7), ("*.attention", 3), ("*.mlp", 3), ("vit.layers.*", 3)]
)
def test_a_pattern_is_all_that_it_fits_and_never_a_part_of_it_again(
    expert: torch.nn.Module, site: str, count: int
) -> None:
    found = resolve_site(expert, site)
    assert len(found) == count
    assert not any(one.startswith(f"{other}.") for one in found for other in found)


@pytest.mark.parametrize(
    ("site", "words"),
    [
        *(("vit", "nothing would be shared"), ("vit.encoder", "nothing would be|list of modules")),
        *(("vit.layers", "is a list of modules"), ("vit.encoder.layer", "is a list of modules")),
        *(("*.atention", "fits"), ("vit*", "nothing would be shared")),
    ],
)
def test_a_site_that_leaves_nothing_to_share_or_runs_nothing_is_refused(
    expert: torch.nn.Module, site: str, words: str
) -> None:
    """``vit.layers`` is a list of blocks that nothing ever calls; ``vit`` is the whole backbone."""
    with pytest.raises(SpecError, match=rf"^tint\.sites.*({words})"):
        resolve_site(expert, site)


@pytest.mark.parametrize(
    "sites",
    [("vit.layers.1", "*.mlp"), ("prompt", "vit.embeddings"), ("norms", "vit.layers.2")],
)
def test_sites_that_overlap_are_refused(expert: torch.nn.Module, sites: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match=rf"^tint\.sites: '{re.escape(sites[1])}' shares '"):
        partition(expert, [TintSite(site) for site in sites])


@pytest.mark.parametrize(
    ("site", "words"), [("head", "no low-rank form"), ("norms", "no linear layer")]
)
def test_a_site_without_a_low_rank_form_is_refused(
    expert: torch.nn.Module, site: str, words: str
) -> None:
    with pytest.raises(SpecError, match=rf"^tint\.sites.*{words}"):
        partition(expert, [TintSite(site, 4)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"intermediate_size": 24}, ["shape [24, 16]", "[32, 16]"]),
        ({"num_hidden_layers": 2}, ["lacks tensor 'vit.layers.2."]),
        ({"num_hidden_layers": 4}, ["has tensor 'vit.layers.3."]),
        ({"image_size": 24}, ["'vit.embeddings.position_embeddings'", "[1, 37, 16]"]),
    ],
)
def test_an_expert_of_another_shape_is_refused_by_its_tensor(
    expert: torch.nn.Module, changes: dict[str, int], words: list[str]
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "image_size": 16, "patch_size": 4}
    other = ViTForImageClassification(ViTConfig(**sizes | changes))
    with pytest.raises(CheckpointError, match=r"^tasks\.x\.expert") as raised:
        check_same_backbone(expert, other, "the base", "tasks.x.expert")
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_model_without_a_head_cannot_be_split() -> None:
    with pytest.raises(CheckpointError, match="no backbone apart from its head"):
        backbone_names(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_a_skeleton_owns_its_tensors(expert: torch.nn.Module) -> None:
    copy = skeleton(expert)
    with torch.no_grad():
        copy.classifier.bias.fill_(7)
    assert not torch.equal(copy.classifier.bias, expert.classifier.bias)
    assert not any(p.requires_grad for p in copy.parameters())
