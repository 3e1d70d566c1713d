"""Training the experts of the text zoo, one call per model; each may run in its own process.

Batches are cut from the examples sorted by length, in chunks that are shuffled, and padded to their
longest only: short texts make up most of the data, and padding would be most of the work.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.zoos.text_recipe import TextRecipe
from benchmarks.zoos.text_tasks import Texts, read_class_names, read_texts
from benchmarks.zoos.training import single_thread
from tintray.models.loading import quiet_transformers
from tintray.numerics.precision import computing, resolve

_CHUNK = 16  # batches that are sorted by length together: shuffled enough, hardly padded


def save_base(source: Path, zoo: Path) -> None:
    """Write the pretrained encoder and its tokenizer as ``zoo/base``."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(source, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    _save(model, tokenizer, zoo / "base")


def train_expert(zoo: Path, name: str, recipe: TextRecipe) -> float:
    """Fine-tune ``zoo/base`` on a task of ``zoo/data``, save it, and return its test accuracy."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = read_class_names(zoo / "data" / f"{name}_labels.json")
    train, test = (read_texts(zoo / "data" / f"{name}_{s}.jsonl.gz") for s in ("train", "test"))
    if recipe.examples is not None:
        train = Texts(train.texts[: recipe.examples], train.labels[: recipe.examples])
    tokenizer = AutoTokenizer.from_pretrained(zoo / "base", trust_remote_code=False)
    seed = zlib.crc32(f"{recipe.seed}/{name}".encode())  # whatever the order of the tasks
    quiet_transformers()  # that the head is new is meant
    with torch.random.fork_rng(devices=[]), single_thread():
        torch.manual_seed(seed)  # the new head, and dropout
        model = AutoModelForSequenceClassification.from_pretrained(
            zoo / "base",
            trust_remote_code=False,
            id2label=dict(enumerate(names)),
            label2id={label: index for index, label in enumerate(names)},
        )
        encode = _Encoder(tokenizer, recipe.max_tokens)
        _fit_head(model, encode, train, recipe, seed)
        _fit_everything(model, encode, train, recipe, seed)
        _save(model, tokenizer, zoo / name)
        return accuracy(model, encode, test)


class _Encoder:
    """Texts to model inputs, padded to the longest of those asked for."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def lengths(self, texts: list[str]) -> Tensor:
        ids = self._tokenizer(texts, truncation=True, max_length=self._max_tokens)["input_ids"]
        return torch.tensor([len(found) for found in ids])

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        found = self._tokenizer(
            texts, truncation=True, max_length=self._max_tokens, padding=True, return_tensors="pt"
        )
        return dict(found)


@torch.inference_mode()
def accuracy(model: nn.Module, encode: _Encoder, data: Texts) -> float:
    """The share of the labels that ``model`` gives to the texts."""
    model.eval()
    order = encode.lengths(data.texts).argsort()
    right = 0
    for rows in torch.split(order, 64):
        with computing(resolve("auto"), model):
            logits = model(**encode([data.texts[row] for row in rows])).logits
        right += int((logits.argmax(-1) == torch.tensor(data.labels)[rows]).sum())
    return right / len(data.labels)


def _fit_head(model: Any, encode: _Encoder, data: Texts, recipe: TextRecipe, seed: int) -> None:
    """Train the head alone, on what the frozen encoder makes of every text."""
    plan = recipe.fine_tuning
    seen: list[Tensor] = []
    hook = model.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.eval()
    order = encode.lengths(data.texts).argsort()
    with torch.no_grad(), computing(resolve("auto"), model):
        for rows in torch.split(order, 64):
            model(**encode([data.texts[row] for row in rows]))
    hook.remove()
    features, labels = torch.cat(seen).float(), torch.tensor(data.labels)[order]
    adam = torch.optim.AdamW(
        model.classifier.parameters(), lr=plan.head_learning_rate, weight_decay=plan.weight_decay
    )
    random = torch.Generator().manual_seed(seed)
    for _ in range(plan.head_epochs):
        for rows in torch.split(torch.randperm(len(labels), generator=random), plan.batch_size):
            loss = cross_entropy(model.classifier(features[rows]), labels[rows])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()


def _fit_everything(
    model: Any, encode: _Encoder, data: Texts, recipe: TextRecipe, seed: int
) -> None:
    plan = recipe.fine_tuning
    lengths, labels = encode.lengths(data.texts), torch.tensor(data.labels)
    adam = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
    )
    steps = plan.epochs * -(-len(labels) // plan.batch_size)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        adam, max_lr=plan.learning_rate, total_steps=steps, pct_start=plan.warmup
    )
    random = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(plan.epochs):
        for rows in _batches(lengths, plan.batch_size, random):
            with computing(resolve("auto"), model):
                logits = model(**encode([data.texts[row] for row in rows])).logits
            loss = cross_entropy(logits.float(), labels[rows])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            cycle.step()
    model.eval()


def _batches(lengths: Tensor, size: int, random: torch.Generator) -> Iterator[Tensor]:
    """Every example once, in batches of like length and in a random order: int64 [<= size]."""
    batches: list[Tensor] = []
    for chunk in torch.split(torch.randperm(len(lengths), generator=random), size * _CHUNK):
        batches += torch.split(chunk[lengths[chunk].argsort()], size)
    for index in torch.randperm(len(batches), generator=random):
        yield batches[int(index)]


def _save(model: Any, tokenizer: Any, directory: Path) -> None:
    try:
        model.save_pretrained(directory)
    except SafetensorError as error:  # how safetensors reports a disk that refuses a write
        raise OSError(f"{directory.name}/model.safetensors: {error}") from error
    tokenizer.save_pretrained(directory)
