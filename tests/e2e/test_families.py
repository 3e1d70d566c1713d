"""Every family of models: ``for_task(x)`` is what the exported folder answers, to 1e-5.

The models here were never trained: what is checked is that their tensors, ties and buffers come
through a merge and an export, whatever the class calls them. The tests of single families train.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tintray
from tests import peft_models, sorts
from tests import tiny_models as tiny
from tests.sorts import SIDE
from tests.workbench import SETTINGS, Workbench
from tintray.jobs import api
from tintray.numerics.sites import TintSite
from tintray.pools import stacked_pools
from tintray.pools.pool import Pool
from tintray.tinting.stacked_step import StackedGroup, form_group

TEXT = tiny.BERT | {"max_position_embeddings": 40, "bos_token_id": 2, "eos_token_id": 3}
CAUSAL = TEXT | {"num_key_value_heads": 1, "head_dim": 8}
IMAGE = tiny.SIZES | {"image_size": SIDE, "patch_size": 4}
PAIR: dict[str, Any] = {"vocab_size": tiny.VOCABULARY, "d_model": 16, "pad_token_id": 0}
for part in ("encoder", "decoder"):
    PAIR |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 16}
PAIR |= {"max_position_embeddings": 40, "bos_token_id": 2, "eos_token_id": 3}
PAIR |= {"decoder_start_token_id": 3, "forced_eos_token_id": 3}
DISTIL = {"vocab_size": tiny.VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
GPT2 = {"vocab_size": tiny.VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
T5 = {"vocab_size": tiny.VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2}
T5 |= {"num_heads": 2, "decoder_start_token_id": 0, "eos_token_id": 3}
OPT = TEXT | {"ffn_dim": 32, "word_embed_proj_dim": 16}
SWIN = {"image_size": SIDE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1]}
SWIN |= {"num_heads": [1, 2], "window_size": 2}
NO_LABELS = ("language_modelling", "seq2seq")


@dataclass(frozen=True)
class Family:
    """A class of models, its configuration, its kind of task and where it is tinted."""

    model: str
    config: dict[str, Any] = field(default_factory=dict)
    kind: str = "classification"
    site: str = "head"
    texts: bool = True
    rank: int | None = None

    def make(self, labels: int) -> Any:
        known = {} if self.kind in NO_LABELS else {"num_labels": labels}
        return tiny.model(self.model, self.config, **known)


def pictures(model: str, site: str = "head", **config: Any) -> Family:
    return Family(model, config, site=site, texts=False)


def causal(model: str, site: str, tied: bool, **config: Any) -> Family:
    return Family(model, config | {"tie_word_embeddings": tied}, "language_modelling", site)


FAMILIES = {
    "vit": pictures("ViTForImageClassification", "vit.layers.1", **IMAGE),
    "beit": pictures("BeitForImageClassification", **IMAGE),
    "dinov2": pictures("Dinov2ForImageClassification", **IMAGE),
    "swin": pictures("SwinForImageClassification", **SWIN),
    "resnet": pictures("ResNetForImageClassification", embedding_size=8, **tiny.STAGES),
    "convnext": pictures(
        "ConvNextForImageClassification", num_stages=2, patch_size=2, **tiny.STAGES
    ),
    "bert": Family("BertForSequenceClassification", TEXT, site="bert.encoder.layer.1"),
    "roberta": Family("RobertaForSequenceClassification", TEXT),
    "distilbert": Family("DistilBertForSequenceClassification", DISTIL),
    "electra": Family("ElectraForSequenceClassification", TEXT | {"embedding_size": 8}),
    "albert": Family("AlbertForSequenceClassification", TEXT | {"embedding_size": 8}),
    "mpnet": Family("MPNetForSequenceClassification", TEXT),
    "gpt2": causal("GPT2LMHeadModel", "transformer.h.1", True, **GPT2),
    "gpt2 by rank": replace(causal("GPT2LMHeadModel", "transformer.h.1", True, **GPT2), rank=2),
    "llama by rank": replace(causal("LlamaForCausalLM", "*.mlp", False, **CAUSAL), rank=2),
    "llama": causal("LlamaForCausalLM", "head", False, **CAUSAL),
    "qwen2": causal("Qwen2ForCausalLM", "model.layers.1", True, **CAUSAL),
    "qwen3": causal("Qwen3ForCausalLM", "norms", True, **CAUSAL),
    "gemma": causal("GemmaForCausalLM", "model.layers.0.mlp", True, **CAUSAL),
    "opt": causal("OPTForCausalLM", "model.decoder.layers.1", True, **OPT),
    "t5": Family("T5ForConditionalGeneration", T5, "seq2seq", "decoder.block.1"),
    "bart": Family("BartForConditionalGeneration", PAIR, "seq2seq", "model.decoder.layers.0"),
}


def inputs(family: Family) -> dict[str, torch.Tensor]:
    if not family.texts:
        return {"pixel_values": torch.randn(3, 3, SIDE, SIDE)}
    made = tiny.tokenizer(model_input_names=["input_ids", "attention_mask"], eos_token="[SEP]")
    batch = tiny.encoded(tiny.sentences(3, 5), made)
    if family.kind == "seq2seq":
        batch["decoder_input_ids"] = torch.tensor([[0, 5, 9]] * 3)
    return batch


@pytest.mark.parametrize("prompted", [False, True], ids=["", "prompt"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_merge_answers_as_its_exported_folder(
    family: Family, prompted: bool, tmp_path: Path
) -> None:
    if family.texts:
        sorts.texts(tmp_path, family.make, "target" if family.kind == "seq2seq" else "label")
    else:
        sorts.pictures(tmp_path, family.make)
    options: dict[str, Any] = {"data": {"max_target_length": 4}} if family.texts else {}
    spec = tiny.job(
        tmp_path,
        dict.fromkeys(("one", "two"), family.kind),
        suffix=".jsonl" if family.texts else ".npz",
        tint={
            "sites": ["prompt"] if prompted else [{"site": family.site, "rank": family.rank}],
        },
        fit={"rounds": 2, "batch_size": 4, "correction_lr": 0.001},
        **options,
    )
    summary = api.run(spec)
    merge = tintray.load(summary.url)
    tiny.check_export(merge, "two", tmp_path, inputs(family))
    again = api.evaluate(summary.url, store=spec.store, catalog=spec.catalog)
    for one, other in zip(summary.tasks, again.tasks, strict=True):  # fused, and task by task
        assert one.merged == pytest.approx(other.merged, abs=1e-5)
    check_peft(merge, family, tmp_path)


def check_peft(merge: Any, family: Family, folder: Path) -> None:
    """As adapters it answers alike; cut to a rank, a batch can be mixed whatever tasks own."""
    pytest.importorskip("peft")
    found = merge.export_peft(folder / "exact")
    assert found.exact
    peft_models.check(merge, found, inputs(family))
    cut = merge.export_peft(folder / "cut", rank=8)
    assert cut.mixed
    peft_models.check(merge, cut, inputs(family), 1e-3 if cut.exact else float("inf"))


CLASSES = {name: of for name, of in FAMILIES.items() if of.kind == "classification"}


@pytest.mark.parametrize("sites", ["prompt", "own"])
@pytest.mark.parametrize("name", [name for name in CLASSES if name != "resnet"])
def test_a_round_is_the_same_where_tasks_are_stacked(
    name: str, sites: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form that GPUs run, of tasks with three and with four classes.

    In one of two the pools find no room on the device, and tasks come one after the other.
    """
    family = CLASSES[name]
    if sites == "own":
        monkeypatch.setattr(stacked_pools, "SHARE", 0.0)
    torch.manual_seed(1)
    experts = {f"task{labels}": family.make(labels).eval() for labels in (3, 4)}
    base = family.make(3).eval()
    chosen = (TintSite("prompt", 2), TintSite("head")) if sites == "prompt" else None
    pools = {
        task: Pool({n: t.clone() for n, t in inputs(family).items()}, None, None, task)
        for task in experts
    }
    if family.texts:  # of the same examples, with more room after them
        longer = pools["task4"].inputs
        pools["task4"] = replace(
            pools["task4"],
            inputs={n: torch.nn.functional.pad(t, (0, 7)) for n, t in longer.items()},
        )
    bench = Workbench(base, experts, pools, sites=chosen or (TintSite(family.site),))
    settings = replace(SETTINGS, batch_size=3, micro_batch=3 if sites == "own" else 64)
    results = []
    for stacked in (True, False):
        group = bench.group(settings)
        if stacked:
            options = (group.tasks, group._fused, group._gradient, settings)
            group = form_group(*options, stacked=True)
            assert isinstance(group, StackedGroup)
        for round_ in range(2):
            answer = group.step(bench.vectors.merge(bench.uniform(0.4)), round_, 0.1)
        owned = [t.detach().flatten() for task in group.tasks for t in task.layer.tensors.values()]
        results.append(torch.cat([answer.gradient, *owned]))
    assert torch.allclose(*results, rtol=1e-3, atol=1e-5)
