"""Encoder–decoder models: answers are texts, self-labels are what experts write, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tintray
from tests import tiny_models as tiny
from tintray.checkpoints.model_folder import open_model_folder
from tintray.data.labels import IGNORED
from tintray.data.source import DataSource
from tintray.errors import CheckpointError, DataError, SpecError
from tintray.jobs import api
from tintray.models.loading import load_expert
from tintray.models.structure import resolve_site
from tintray.pools import sequences
from tintray.pools.preparing import open_pool
from tintray.tasks.registry import find_kind

WORDS = 10
STEPS = {"up": 1, "down": -1}
KINDS = dict.fromkeys(STEPS, "seq2seq")


def t5(tied: bool) -> Any:
    config = {"vocab_size": tiny.VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 64}
    config |= {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    config |= {"relative_attention_num_buckets": 8, "decoder_start_token_id": 0}
    config |= {"pad_token_id": 0, "eos_token_id": 3, "tie_word_embeddings": tied}
    module = tiny.model("T5ForConditionalGeneration", config)
    if not tied:  # transformers ties what it makes; a file of T5 1.1 or Flan-T5 has both tensors
        module.lm_head.weight = torch.nn.Parameter(torch.randn_like(module.shared.weight) * 0.05)
    return module


def tokenizer() -> Any:
    from tokenizers.processors import TemplateProcessing

    made = tiny.tokenizer(eos_token="[SEP]", model_input_names=["input_ids", "attention_mask"])
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", 3)]
    )
    return made


def make_zoo(folder: Path, tied: bool, steps: int = 50) -> Path:
    """A word, said once or more; one task answers with the two that follow, the other one with
    those before it.
    """
    tasks: dict[str, Any] = {}
    for seed, (name, step) in enumerate(STEPS.items()):
        for split, count in (("train", 48), ("test", 40)):
            random = torch.Generator().manual_seed(seed + 2 * len(split))
            numbers = torch.randint(WORDS, (count,), generator=random).tolist()
            times = torch.randint(1, 4 + seed, (count,), generator=random).tolist()
            texts = [" ".join([f"w{n}"] * k) for n, k in zip(numbers, times, strict=True)]
            targets = [f"w{(n + step) % WORDS} w{(n + 2 * step) % WORDS}" for n in numbers]
            rows = [{"text": t, "target": a} for t, a in zip(texts, targets, strict=True)]
            tiny.save_rows(folder / f"{name}_{split}.jsonl", rows)
            if split == "train":
                made = tokenizer()
                batch = dict(made(texts, padding=True, return_tensors="pt"))
                answers = sequences.encode(targets, made, 8)
                tasks[name] = (0, batch | {"labels": answers})
    tiny.experts(folder, lambda _: t5(tied), tasks, tokenizer(), steps=steps, lr=1e-2)
    path = folder / "down" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_new_tokens": 7}))
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("t5"), tied=True)


def job(folder: Path, store: Path, **sections: Any) -> Any:
    data = {"max_target_length": 6}
    fit = {"rounds": 60, **sections.pop("fit", {})}
    return tiny.job(folder, KINDS, store=str(store), data=data, fit=fit, **sections)


@pytest.mark.parametrize("site", ["decoder.block.0", "decoder.block.*"])
def test_tied_embeddings_stay_tied_under_a_tinted_decoder_block(
    tied: Path, tmp_path: Path, site: str
) -> None:
    spec = job(tied, tmp_path, tint={"sites": site})
    summary = api.run(spec)
    assert [task.metric for task in summary.tasks] == ["exact_match"] * 2
    assert min(task.expert or 0 for task in summary.tasks) > 0.8
    assert summary.normalised_accuracy > 0.6
    merge = tintray.load(summary.url)
    module: Any = merge.for_task("down")
    embeddings = module.get_input_embeddings().weight
    others = (module.lm_head, module.encoder.embed_tokens, module.decoder.embed_tokens)
    assert all(other.weight is embeddings for other in others)
    made = tokenizer()
    batch = dict(made(["w3 w5 w1", "w1 w2"], padding=True, return_tensors="pt"))
    decoder = {"decoder_input_ids": torch.tensor([[0, 9], [0, 6]])}
    tiny.check_export(merge, "down", tmp_path, batch | decoder)
    written = json.loads((tmp_path / "exported-down" / "generation_config.json").read_text())
    assert module.generation_config.max_new_tokens == 7 == written["max_new_tokens"]
    again = api.evaluate(summary.url, store=spec.store, catalog=spec.catalog)
    assert [task.merged for task in again.tasks] == [task.merged for task in summary.tasks]


def test_a_site_that_holds_tied_embeddings_is_refused_for_its_blocks() -> None:
    with pytest.raises(SpecError, match=r"'decoder' holds .*tied.*such as 'decoder\.block\.\*'"):
        resolve_site(t5(tied=True), "decoder")


def test_a_merge_takes_in_another_writer(tied: Path, tmp_path: Path) -> None:
    spec = job(tied, tmp_path / "store", tint={"sites": "decoder.block.1"})
    summary = tiny.check_growth(spec, tmp_path)
    assert summary.tasks[-1].metric == "exact_match"
    assert summary.tasks[-1].agreement > 0.3


def test_an_untied_language_head_is_a_tint_site(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path, tied=False, steps=10)
    summary = api.run(job(zoo, tmp_path / "store", tint={"sites": "head"}, fit={"rounds": 5}))
    merge = tintray.load(summary.url)
    assert list(merge.tint("up")) == ["lm_head.weight"]
    batch = dict(tokenizer()(["w3 w3"], return_tensors="pt"))
    decoder = {"decoder_input_ids": torch.tensor([[0, 8]])}
    tiny.check_export(merge, "up", tmp_path, batch | decoder)
    module: Any = merge.for_task("up")
    assert not module.config.scale_decoder_outputs
    assert not torch.equal(module.lm_head.weight, module.shared.weight)
    assert module.generate(**batch, max_new_tokens=6).shape[0] == 1


def test_exact_match_is_that_of_what_the_model_writes(tied: Path, tmp_path: Path) -> None:
    """Asked for every token after the right ones before it: as good as writing, and one pass."""
    summary = api.run(job(tied, tmp_path, tint={"sites": "decoder.block.1"}, fit={"rounds": 2}))
    merge = tintray.load(summary.url)
    module: Any = merge.for_task("down")
    order = DataSource(str(tied / "down_test.jsonl"), max_target_length=6)
    checkpoint = open_model_folder(tied / "down")
    pool = open_pool(order, checkpoint, find_kind("seq2seq"), "x", "x")
    right = sequences.with_right_answers(pool, order, tokenizer(), module.config, "x").targets
    assert right is not None
    found = sequences.write(module, pool)
    width = max(found.shape[1], right.shape[1])
    found, right = (
        torch.nn.functional.pad(t, (0, width - t.shape[1]), value=IGNORED) for t in (found, right)
    )
    exact = float((found == right).all(1).float().mean())
    down = next(task for task in summary.tasks if task.name == "down")
    assert down.merged == pytest.approx(exact)
    assert 0 < exact < 1
    rows = (tied / "down_test.jsonl").read_text().splitlines()[:6]
    said = merge.predict_mixed([("down", json.loads(row)["text"]) for row in rows])
    texts = tokenizer().batch_decode(sequences.write(module, pool[:6]).clamp_min(0), True)
    assert [one.label for one in said] == texts


def test_answers_of_a_pool_are_never_read(tied: Path, tmp_path: Path) -> None:
    """What the decoder reads on a pool is the expert's own writing."""
    urls = []
    for number, nonsense in enumerate((False, True)):
        folder = tiny.linked(tied, tmp_path / str(number))
        for name in KINDS:
            lines = (tied / f"{name}_train.jsonl").read_text()
            (folder / f"{name}_train.jsonl").unlink()
            text = lines.replace('"target": "', '"target": "w39 ') if nonsense else lines
            (folder / f"{name}_train.jsonl").write_text(text)
        sections: Any = {"tint": {"sites": "decoder.block.1"}, "fit": {"rounds": 2}}
        urls.append(api.run(job(folder, folder / "store", **sections)).url)
    first, second = (
        {name: ref.sha256 for name, ref in tintray.load(url).manifest.files.items()} for url in urls
    )
    assert first == second


def test_what_an_expert_writes_ends_where_it_ended(tied: Path) -> None:
    checkpoint = open_model_folder(tied / "up")
    expert: Any = load_expert(checkpoint)
    order = DataSource(str(tied / "up_train.jsonl"), "train[:5]", max_target_length=6)
    pool = open_pool(order, checkpoint, find_kind("seq2seq"), "x", "x")
    assert sequences.is_open(pool)
    whole = sequences.completed(expert, pool)
    assert whole.targets is not None and whole.mask is not None
    for row, mask, read in zip(
        whole.targets, whole.mask, whole.inputs["decoder_input_ids"], strict=True
    ):
        length = int(mask.sum())
        assert (row[:length] != IGNORED).all()
        assert (row[length:] == IGNORED).all()
        assert (row[: length - 1] != 3).all()  # at most one end, and last
        assert read[0] == 0
        assert torch.equal(read[1:length], row[: length - 1])


def test_models_that_cannot_write_are_refused(tied: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x is a Linear; expected an encoder–decoder model"):
        find_kind("seq2seq").check_model(torch.nn.Linear(2, 2), "x")
    module = t5(True)
    with pytest.raises(CheckpointError, match=r"expected a causal model .* of kind 'seq2seq'"):
        find_kind("language_modelling").check_model(module, "x")
    module.config.decoder_start_token_id = None
    with pytest.raises(CheckpointError, match=r"x: the configuration has no decoder_start_token"):
        find_kind("seq2seq").check_model(module, "x")
    tiny.save_rows(tmp_path / "x.jsonl", [{"text": "w1 w2", "target": 3}])
    order = DataSource(str(tmp_path / "x.jsonl"))
    pool = open_pool(order, open_model_folder(tied / "up"), find_kind("seq2seq"), "x", "x")
    with pytest.raises(DataError, match=r"holds 3; expected a text for each example"):
        sequences.with_right_answers(pool, order, tokenizer(), t5(True).config, "x")
