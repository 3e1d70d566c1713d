"""Text models as people have them: encoders for texts and for tokens, causal models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

import tintray
from tests import tiny_models as tiny
from tintray.jobs import api

CLASSES = {"thirds": "classification", "halves": "classification"}


def bert(task: str) -> Callable[[int], Any]:
    return lambda labels: tiny.model(f"BertFor{task}Classification", tiny.BERT, num_labels=labels)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks about the same words: the first one's remainder by three, and its half."""
    folder = tmp_path_factory.mktemp("bert")
    rules: Any = {
        "thirds": (3, lambda row: tiny.number(row) % 3),
        "halves": (2, lambda row: int(tiny.number(row) >= 20)),
    }
    tasks = tiny.labelled_texts(folder, rules, longest=lambda task: 6 + 6 * task)
    return tiny.experts(folder, bert("Sequence"), tasks, tiny.tokenizer(), keep=tiny.is_shared)


@pytest.mark.parametrize("site", ["head", "bert.encoder.layer.1", "auto"])
def test_sequence_classification(classifiers: Path, tmp_path: Path, site: str) -> None:
    store = str(tmp_path / "store")
    spec = tiny.job(classifiers, CLASSES, tint={"sites": site}, store=store)
    summary = api.run(spec)
    assert mean([task.normalised or 0 for task in summary.tasks]) > 0.6
    assert [task.metric for task in summary.tasks] == ["accuracy", "accuracy"]
    merge = tintray.load(summary.url)
    batch = tiny.encoded(tiny.sentences(5, 99))
    tiny.check_export(merge, "thirds", tmp_path, batch)
    card = (tmp_path / "exported-thirds" / "README.md").read_text()
    assert "| thirds | classification | accuracy |" in card
    whole = tmp_path / "whole"
    api.export(summary.url, None, whole, store=spec.store, catalog=spec.catalog)
    for task in merge.tasks:
        one, other = (m.for_task(task)(**batch).logits for m in (merge, tintray.load(str(whole))))
        assert torch.equal(one, other)
    assert "halves" in (whole / "README.md").read_text()
    again = api.evaluate(summary.url, store=spec.store, catalog=spec.catalog)
    assert [task.merged for task in again.tasks] == [task.merged for task in summary.tasks]


def test_labels_of_a_pool_are_never_read(classifiers: Path, tmp_path: Path) -> None:
    """Scrambled, removed or nonsense labels in the pool give the same merge."""
    digests = []
    for number, label in enumerate((None, "nonsense", -7)):
        folder = tiny.linked(classifiers, tmp_path / str(number))
        for name in ("thirds", "halves"):
            if label is not None:
                lines = (classifiers / f"{name}_train.jsonl").read_text().splitlines()
                rows = [json.loads(line) | {"label": label} for line in lines]
                (folder / f"{name}_train.jsonl").unlink()
                tiny.save_rows(folder / f"{name}_train.jsonl", rows)
        manifest = tintray.load(api.run(tiny.job(folder, CLASSES, fit={"rounds": 3})).url).manifest
        digests.append({name: ref.sha256 for name, ref in manifest.files.items()})
    assert digests[0] == digests[1] == digests[2]


def test_token_classification(tmp_path: Path) -> None:
    rules = {"thirds": lambda n: n % 3, "halves": lambda n: int(n >= 20)}
    tasks: dict[str, Any] = {}
    for seed, (name, rule) in enumerate(rules.items()):
        for split in ("train", "test"):
            words = tiny.sentences(40, 10 * seed + len(split))
            labels = [[rule(int(w[1:])) for w in row] for row in words]
            rows = [{"tokens": w, "tags": y} for w, y in zip(words, labels, strict=True)]
            tiny.save_rows(tmp_path / f"{name}_{split}.jsonl", rows)
            if split == "train":
                batch = tiny.encoded(words)
                target = torch.full_like(batch["input_ids"], -100)
                for row, tags in enumerate(labels):
                    target[row, 1 : 1 + len(tags)] = torch.tensor(tags)
                tasks[name] = (3 - seed, batch | {"labels": target})
    tiny.experts(tmp_path, bert("Token"), tasks, tiny.tokenizer(), keep=tiny.is_shared)
    kinds = dict.fromkeys(rules, "token_classification")
    summary = api.run(tiny.job(tmp_path, kinds, tint={"sites": "auto"}))
    assert summary.site in ("head", "bert.encoder.layer.0", "bert.encoder.layer.1")
    assert min(task.expert or 0 for task in summary.tasks) > 0.8
    assert summary.normalised_accuracy > 0.85
    assert all((task.calibration or {})["merged"]["ece"] < 0.5 for task in summary.tasks)
    words = tiny.sentences(4, 7)
    merge, batch = tintray.load(summary.url), tiny.encoded(words)
    tiny.check_export(merge, "halves", tmp_path, batch)
    classes = merge.predict("halves", batch).argmax(-1)
    for row, said in enumerate(merge.predict("halves", words)):
        assert said.label == classes[row, 1 : 1 + len(words[row])].tolist()
        assert len(said.confidence) == len(words[row])


def byte_level_bert() -> Any:
    """RoBERTa's kind of tokenizer, with its numbers for special tokens; a word is one token."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    trained = ByteLevelBPETokenizer(add_prefix_space=True)
    texts = [" ".join(row) for row in tiny.sentences(200, 1)]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(texts, vocab_size=400, special_tokens=special, show_progress=False)
    state = json.loads(trained.to_str())["model"]
    options: Any = {"add_prefix_space": True, "model_max_length": 30}
    merges = [tuple(pair) for pair in state["merges"]]
    return RobertaTokenizer(vocab=state["vocab"], merges=merges, **options)


def test_classes_sets_of_classes_and_values_on_one_roberta(tmp_path: Path) -> None:
    """Its positions begin behind the number of padding, which a fused batch has to use."""
    rules: Any = {
        "thirds": (3, lambda row: tiny.number(row) % 3),
        "parts": (2, lambda row: [float(tiny.number(row) >= 8), float(tiny.number(row) % 2)]),
        "size": (1, lambda row: tiny.number(row) / 4 - 2),
    }
    made = byte_level_bert()
    lengths, spelt = (lambda task: 5 + 2 * task), (lambda word: f"w{tiny.number([word]) % 16}")
    tasks = tiny.labelled_texts(tmp_path, rules, made, longest=lengths, spelt=spelt)
    config = tiny.BERT | {"vocab_size": 400, "pad_token_id": 1, "bos_token_id": 0}
    config |= {"eos_token_id": 2, "hidden_dropout_prob": 0.0, "initializer_range": 0.1}

    def make(labels: int) -> Any:
        return tiny.model("RobertaForSequenceClassification", config, num_labels=labels)

    tiny.experts(tmp_path, make, tasks, made, steps=60, lr=1e-2, keep=tiny.is_shared)
    kinds = dict(zip(rules, ("classification", "multi_label", "regression"), strict=True))
    summary = api.run(tiny.job(tmp_path, kinds, tint={"sites": "roberta.encoder.layer.1"}))
    found = {task.name: task for task in summary.tasks}
    assert {name: task.metric for name, task in found.items()} == {
        "thirds": "accuracy",
        "parts": "micro_f1",
        "size": "mae",
    }
    assert (found["parts"].expert or 0) > 0.7
    assert (found["size"].expert or 9) < 0.6  # answering with the mean would leave an error of 1
    assert min(task.normalised for task in found.values()) > 0.6
    merge = tintray.load(summary.url)
    for name in rules:
        tiny.check_export(merge, name, tmp_path, tiny.encoded(tiny.sentences(4, 7), made))
    texts = [" ".join(row) for row in tiny.sentences(4, 7)]
    said = merge.predict_mixed([(name, text) for text in texts for name in rules])
    for one, text in zip(said, [text for text in texts for _ in rules], strict=True):
        alone = merge.predict(one.task, dict(made([text], return_tensors="pt")))[0]
        assert one.values == pytest.approx(alone.numpy(), abs=1e-5)
    assert [one.label for one in said[2::3]] == [None] * 4
    assert all(one.label == np.flatnonzero(one.values > 0).tolist() for one in said[1::3])


NAMES = ["input_ids", "attention_mask"]
CHAT = (
    "{% for message in messages %}{{ message['role'] }} "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{% endgeneration %} {% else %}{{ message['content'] }} {% endif %}{% endfor %}"
)


def test_a_conversation_is_what_the_template_makes_of_it(tmp_path: Path) -> None:
    """Padded on the right, whatever the tokenizer says; only the assistant's words are learned."""
    from tintray.data.reading import Examples
    from tintray.pools.preparing import build_pool
    from tintray.tasks.registry import find_kind

    sides: Any = {"padding_side": "left", "truncation_side": "right"}
    made = tiny.tokenizer(chat_template=CHAT, model_input_names=NAMES, **sides)
    talks = [
        [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate(talk)]
        for talk in (("w1 w2", "w3 w4"), ("w5", "w6", "w7 w8", "w9"))
    ]
    examples = Examples({"messages": talks})
    pool = build_pool(examples, made, kind=find_kind("language_modelling"))
    assert pool.mask is not None and pool.targets is not None
    plain = [made.apply_chat_template(talk, tokenize=True)["input_ids"] for talk in talks]
    for row, ids in enumerate(plain):
        real = pool.inputs["attention_mask"][row].bool()
        assert pool.inputs["input_ids"][row][real].tolist() == ids
        assert real.tolist() == sorted(real.tolist(), reverse=True)  # what is real comes first
        # a position counts if the token after it is the assistant's, and that is its target
        counted = pool.mask[row].nonzero().flatten()
        assert torch.equal(pool.targets[row][counted], pool.inputs["input_ids"][row][counted + 1])
    said = [made.decode(pool.targets[row][pool.mask[row]]).split() for row in range(2)]
    assert said == [["w3", "w4"], ["w6", "w9"]]
    unmarked = CHAT.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    everything = tiny.tokenizer(chat_template=unmarked, model_input_names=NAMES)
    whole = build_pool(examples, everything, kind=find_kind("language_modelling"))
    assert whole.mask is not None
    assert whole.mask.sum(1).tolist() == [len(ids) - 1 for ids in plain]


def causal(kind: str, tied: bool) -> Any:
    name, config = {
        "gpt2": ("GPT2LMHeadModel", tiny.GPT2),
        "llama": ("LlamaForCausalLM", tiny.LLAMA),
        "qwen2": ("Qwen2ForCausalLM", tiny.LLAMA | {"vocab_size": 400}),
    }[kind]
    return tiny.model(name, config, tie_word_embeddings=tied)


SITES = {"gpt2": "transformer.h.1", "llama": "head", "qwen2": "model.layers.1"}


@pytest.mark.parametrize("kind", SITES)
def test_causal_models(tmp_path: Path, kind: str) -> None:
    """Two rules of how words follow each other; what is tied stays tied."""
    tied, site = kind != "llama", SITES[kind]
    processor = tiny.byte_level() if kind == "qwen2" else tiny.tokenizer(model_input_names=NAMES)
    tasks: dict[str, Any] = {}
    for seed, (name, step) in enumerate({"up": 1, "down": -3}.items()):
        for split in ("train", "test"):
            random = torch.Generator().manual_seed(seed + len(split))
            starts = torch.randint(40, (32,), generator=random).tolist()
            lengths = torch.randint(4, 9 + 4 * seed, (32,), generator=random).tolist()
            words = [
                [f"w{(a + step * n) % 40}" for n in range(k)]
                for a, k in zip(starts, lengths, strict=True)
            ]
            rows = [{"text": " ".join(row)} for row in words]
            tiny.save_rows(tmp_path / f"{name}_{split}.jsonl", rows)
            if split == "train":
                batch = tiny.encoded(words, processor)
                labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
                tasks[name] = (0, batch | {"labels": labels})
    tiny.experts(tmp_path, lambda _: causal(kind, tied), tasks, processor, steps=100, lr=1e-2)
    kinds = dict.fromkeys(tasks, "language_modelling")
    spec = tiny.job(tmp_path, kinds, tint={"sites": site}, fit={"rounds": 40})
    summary = api.run(spec)
    assert min(task.expert or 0 for task in summary.tasks) > 0.3
    assert mean([task.normalised or 0 for task in summary.tasks]) > 0.6
    merge = tintray.load(summary.url)
    module = merge.for_task("up")
    same = module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert same == tied
    if kind == "gpt2":  # merged with the embeddings, where a method learns no head
        rivals = api.compare(summary.url, store=spec.store, catalog=spec.catalog)
        assert rivals.averages["average"] < rivals.averages["merge"]
    tiny.check_export(merge, "up", tmp_path, tiny.encoded(tiny.sentences(3, 5), processor))


def test_a_tied_head_is_no_site(tmp_path: Path) -> None:
    from tintray.errors import SpecError
    from tintray.models.structure import head_modules, resolve_site

    module = causal("gpt2", tied=True)
    assert head_modules(module) == ()
    with pytest.raises(SpecError, match=r"head of GPT2LMHeadModel is tied .*'transformer\.h\.1'"):
        resolve_site(module, "head")
    with pytest.raises(SpecError, match=r"'transformer\.wte' holds .* tied"):
        resolve_site(module, "transformer.wte")
