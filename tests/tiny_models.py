"""Tiny models of every family, fine-tuned from one base in a second, saved as users' folders are.

What each task asks is planted in its data: a token, a colour, a rule. So experts learn something,
and a merge that mixes tasks up is seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.tiny_zoo import GPUS

WORDS = [f"w{n}" for n in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = len(SPECIAL) + len(WORDS)

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32}
BERT = SIZES | {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "pad_token_id": 0}
LLAMA = BERT | {"num_key_value_heads": 1}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
GPT2 |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
RESNET = STAGES | {"embedding_size": 8, "layer_type": "basic"}
SEGFORMER = STAGES | {"num_encoder_blocks": 2, "sr_ratios": [1, 1], "patch_sizes": [3, 3]}
SEGFORMER |= {"strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
SEGFORMER |= {"decoder_hidden_size": 16}


def model(name: str, config: Mapping[str, Any], **more: Any) -> Any:
    """A model of one of transformers' classes, untrained."""
    import transformers

    cls = getattr(transformers, name)
    return cls(cls.config_class(**{**config, **more}))


def tokenizer(**options: Any) -> Any:
    """A word-level tokenizer over forty words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 32} | options,
    )


def byte_level() -> Any:
    """A byte-level tokenizer, as Qwen's; each word becomes one token."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import Qwen2Tokenizer

    trained = ByteLevelBPETokenizer()
    texts, special = [" ".join(row) for row in sentences(200, 1)], ["<|endoftext|>"]
    trained.train_from_iterator(texts, vocab_size=400, special_tokens=special, show_progress=False)
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    return Qwen2Tokenizer(vocab=state["vocab"], merges=merges, model_max_length=32)


def sentences(count: int, seed: int, longest: int = 9) -> list[list[str]]:
    """Random words, of different lengths."""
    random = np.random.default_rng(seed)
    return [
        [WORDS[i] for i in random.integers(0, len(WORDS), random.integers(3, longest))]
        for _ in range(count)
    ]


def save_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as a jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encoded(words: Sequence[Sequence[str]], made: Any = None) -> dict[str, torch.Tensor]:
    """Rows of words as a padded batch."""
    texts = [" ".join(row) for row in words]
    return dict((made or tokenizer())(texts, padding=True, return_tensors="pt"))


def labelled_texts(
    folder: Path,
    rules: Mapping[str, tuple[int, Callable[[list[str]], Any]]],
    made: Any = None,
    *,
    longest: Callable[[int], int] = lambda task: 6,
    spelt: Callable[[str], str] = lambda word: word,
) -> dict[str, tuple[int, dict[str, torch.Tensor]]]:
    """Texts for each task, to be trained on and tested with: its labels, and its training batch.

    A rule is how many labels there are, and which one a text has. Texts of different tasks may
    differ in length, so that a fused batch has to be padded.
    """
    tasks: dict[str, Any] = {}
    for seed, (name, (width, rule)) in enumerate(rules.items()):
        for split in ("test", "train"):
            words = sentences(48, 10 * seed + len(split), longest(seed))
            words = [[spelt(word) for word in row] for row in words]
            labels = [rule(row) for row in words]
            rows = [{"text": " ".join(w), "label": y} for w, y in zip(words, labels, strict=True)]
            save_rows(folder / f"{name}_{split}.jsonl", rows)
        tasks[name] = (width, encoded(words, made) | {"labels": torch.tensor(labels)})
    return tasks


def number(row: Sequence[str]) -> int:
    """That of a text's first word."""
    return int(row[0][1:])


def train(model: Any, batch: Callable[[int], Mapping[str, Any]], steps: int, lr: float) -> None:
    """Fine-tune on ``batch(step)``, whose ``labels`` the model turns into its own loss."""
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for step in range(steps):
        loss = model(**batch(step)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()


def experts(
    folder: Path,
    make: Callable[[int], Any],
    tasks: Mapping[str, tuple[int, Mapping[str, Any]]],
    processor: Any,
    *,
    steps: int = 40,
    lr: float = 3e-3,
    keep: Callable[[str], bool] = lambda name: True,
) -> Path:
    """Save a base and one expert per task below ``folder``.

    Parameters
    ----------
    make
        A fresh model with so many labels.
    tasks
        Name to number of labels and the training batch.
    keep
        Which tensors an expert takes over from the base, by name.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = make(next(iter(tasks.values()))[0])
        state = base.state_dict()
        _save(base, processor, folder / "base")
        for number, (name, (labels, batch)) in enumerate(tasks.items()):
            torch.manual_seed(1 + number)
            expert = make(labels)
            own = {key: t.shape for key, t in expert.state_dict().items() if keep(key)}
            shared = {key: t for key, t in state.items() if own.get(key) == t.shape}
            expert.load_state_dict(shared, strict=False)
            train(expert, lambda _step, batch=batch: batch, steps, lr)
            _save(expert, processor, folder / name)
    return folder


def _save(model: Any, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def linked(folder: Path, target: Path) -> Path:
    """A new folder of links to what is in ``folder``, to write other files over some."""
    target.mkdir()
    for path in folder.iterdir():
        if path.name != "store":
            (target / path.name).symlink_to(path)
    return target


def is_shared(name: str) -> bool:
    """Whether a tensor of a classifier is none of its head."""
    return not name.startswith("classifier")


def check_growth(spec: Any, folder: Path) -> Any:
    """A merge of all tasks but the last takes that in with a tint alone; the child's summary."""
    import yaml

    import tintray

    *old, new = spec.tasks
    merge = tintray.run(spec.changed(tasks=old))
    path = folder / f"{new.name}.yaml"
    path.write_text(yaml.safe_dump([new.model_dump(mode="json", exclude_defaults=True)]))
    easy = ("growth.rounds=100", "growth.target=0.01", "growth.tolerance=100")
    before, after = merge.summary(), merge.add([path], mode="tint", overrides=easy).summary()
    assert [task.name for task in after.tasks] == [task.name for task in spec.tasks]
    kept, known = (
        {task.name: task.merged for task in summary.tasks if task.name != new.name}
        for summary in (after, before)
    )
    assert kept == known
    return after


def job(folder: Path, kinds: Mapping[str, str], **sections: Any) -> Any:
    """A parsed job over ``folder``: experts by name, data in NAME_train and NAME_test files."""
    from tintray.jobs.config.job_file import parse_spec

    suffix = sections.pop("suffix", ".jsonl")
    data = sections.pop("data", {})
    parts = {"pool": "train", "test": "test"}
    tasks = [
        {"name": name, "kind": kind, "expert": name}
        | {part: {"path": f"{name}_{split}{suffix}", **data} for part, split in parts.items()}
        for name, kind in kinds.items()
    ]
    fit = {"rounds": 30, "batch_size": 8, "precision": "float32", **sections.pop("fit", {})}
    document = {"name": "tiny", "base": "base", "tasks": tasks, "store": str(folder / "store")}
    document |= {"fit": fit, "cluster": {"workers": 0, "gpus_per_worker": GPUS}}
    return parse_spec(document | sections, folder=folder)


def check_export(merge: Any, task: str, folder: Path, inputs: Mapping[str, Any]) -> None:
    """``for_task`` answers as the exported folder does, loaded as its users would."""
    import transformers

    from tintray.models.calling import answer

    module = merge.for_task(task)
    exported = merge.export(task, folder / f"exported-{task}")
    architecture = json.loads((exported / "config.json").read_text())["architectures"][0]
    loaded = getattr(transformers, architecture).from_pretrained(exported).eval()
    with torch.inference_mode():
        found, expected = answer(loaded, inputs), answer(module, inputs)
    assert torch.allclose(found, expected, atol=1e-5)
