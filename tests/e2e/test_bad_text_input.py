"""Text experts that do not belong together: one sentence, before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny_models as tiny
from tintray.errors import InputError
from tintray.jobs import api

TASKS = {"first": 3, "second": 2}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts that were never trained, and their texts."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("texts")
    for number, (name, labels) in enumerate({"base": 2, **TASKS}.items()):
        torch.manual_seed(number)
        config = BertConfig(
            vocab_size=tiny.VOCABULARY,
            max_position_embeddings=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            id2label={n: f"class {n}" for n in range(labels)},
            label2id={f"class {n}": n for n in range(labels)},
        )
        tiny._save(BertForSequenceClassification(config), tiny.tokenizer(), folder / name)
        for split in ("train", "test"):
            rows = [
                {"text": " ".join(row), "label": f"class {n % labels}"}
                for n, row in enumerate(tiny.sentences(6, number))
            ]
            tiny.save_rows(folder / f"{name}_{split}.jsonl", rows)
    return folder


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def tokens(folder: Path, edit: Callable[[dict[str, int]], dict[str, int]]) -> None:
    """Give the second expert's tokenizer other tokens or other numbers."""

    def change_tokens(content: dict[str, Any]) -> None:
        content["model"]["vocab"] = edit(content["model"]["vocab"])

    change(folder / "second" / "tokenizer.json", change_tokens)


def renumber(folder: Path) -> None:
    """Two tokens change places, as in a tokenizer that was trained again."""
    tokens(folder, lambda known: known | {"w3": known["w4"], "w4": known["w3"]})


def other_tokens(folder: Path) -> None:
    tokens(
        folder, lambda known: {t if t[0] != "w" or t == "w0" else f"{t}'": known[t] for t in known}
    )
    for split in ("train", "test"):
        rows = [{"text": "w0 w0", "label": "class 0"}] * 3
        tiny.save_rows(folder / f"second_{split}.jsonl", rows)


def beyond(folder: Path) -> None:
    """A token that the embeddings know nothing of."""
    tokens(folder, lambda known: known | {"new": tiny.VOCABULARY + 3})
    tiny.save_rows(folder / "second_train.jsonl", [{"text": "w1 new"}])


def resized(folder: Path) -> None:
    from transformers import BertForSequenceClassification

    expert = BertForSequenceClassification.from_pretrained(folder / "second")
    expert.resize_token_embeddings(tiny.VOCABULARY + 2, mean_resizing=False)
    expert.save_pretrained(folder / "second")


def unknown_class(folder: Path) -> None:
    tiny.save_rows(folder / "second_test.jsonl", [{"text": "w1 w2", "label": "clas 1"}])


def contradiction(folder: Path) -> None:
    swapped = {"class 1": 0, "class 0": 1}
    change(folder / "second" / "config.json", lambda config: config.update(label2id=swapped))


def adapter(folder: Path, named: str) -> None:
    """An adapter in the place of an expert, which says what it was trained on."""
    peft = pytest.importorskip("peft")
    from transformers import BertForSequenceClassification

    base = BertForSequenceClassification.from_pretrained(folder / "base")
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = peft.get_peft_model(base, settings)
    shutil.rmtree(folder / "second")
    model.save_pretrained(folder / "second")
    own = {"base_model_name_or_path": named}
    change(folder / "second" / "adapter_config.json", lambda config: config.update(own))
    change(folder / "base" / "config.json", lambda c: c.update(_name_or_path="org/this"))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "tokens numbered otherwise": (
        renumber,
        r"^tasks\.second\.expert: its tokenizer has the token 'w4' as number 7, and that of the "
        r"base as 8; expected one tokenizer",
    ),
    "other tokens": (
        other_tokens,
        r"^tasks\.second\.expert: its tokenizer has 44 tokens, of which that of the base knows 5",
    ),
    "a token beyond the embeddings": (
        beyond,
        r"^tasks\.second\.expert: .* the token number 47, and the model has 44 embeddings",
    ),
    "another number of embeddings": (
        resized,
        r"^tasks\.second\.expert: .*vocab_size=46, the base has 44; expected one vocabulary for",
    ),
    "a class that the head has not": (
        unknown_class,
        r"^tasks\.second\.test: .*'clas 1', which is no class .*did you mean 'class 1'",
    ),
    "maps of labels that disagree": (
        contradiction,
        r"^tasks\.second\.expert: config\.json calls class 0 'class 0' in id2label and 'class 1'",
    ),
    "an adapter of another base": (
        lambda folder: adapter(folder, "org/other"),
        r"^tasks\.second\.expert: .*belongs to 'org/other'; the base is 'org/this'",
    ),
}


@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD.keys())
def test_texts_and_experts_that_do_not_fit_are_refused(
    healthy: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    folder = Path(shutil.copytree(healthy, tmp_path / "zoo"))
    damage(folder)
    spec = tiny.job(folder, dict.fromkeys(TASKS, "classification"), fit={"rounds": 1})
    with pytest.raises(InputError, match=words):
        api.run(spec)
    assert not list(folder.glob("store/cache/**/*.json"))


def test_the_undamaged_job_is_accepted(healthy: Path, tmp_path: Path) -> None:
    """Also where one tokenizer knows a token more, which it never gives."""
    folder = Path(shutil.copytree(healthy, tmp_path / "zoo"))
    tokens(folder, lambda known: known | {"extra": tiny.VOCABULARY})
    spec = tiny.job(folder, dict.fromkeys(TASKS, "classification"), fit={"rounds": 1})
    assert [task.name for task in api.run(spec).tasks] == list(TASKS)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_tied_in_one_model_only_is_refused(tmp_path: Path, tied: bool) -> None:
    """Even where no configuration says so: the tensors of the file are what is loaded."""
    from tests.e2e.test_text_models import causal

    names = ["input_ids", "attention_mask"]
    torch.manual_seed(0)
    for name, own in {"base": tied, "first": tied, "second": not tied}.items():
        model = causal("gpt2", tied=own)
        model.config.tie_word_embeddings = True
        if not own:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        tiny._save(model, tiny.tokenizer(model_input_names=names), tmp_path / name)
    for name in TASKS:
        rows = [{"text": " ".join(row)} for row in tiny.sentences(4, 1)]
        tiny.save_rows(tmp_path / f"{name}_train.jsonl", rows)
        tiny.save_rows(tmp_path / f"{name}_test.jsonl", rows)
    kinds = dict.fromkeys(TASKS, "language_modelling")
    spec = tiny.job(tmp_path, kinds, tint={"sites": "transformer.h.1"})
    words = r"head of its own \(lm_head\), .* tied to its embeddings; expected the head tied in all"
    with pytest.raises(InputError, match=rf"^tasks\.second\.expert: .*{words}"):
        api.run(spec)
