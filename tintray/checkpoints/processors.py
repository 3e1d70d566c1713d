"""The image processor or the tokenizer beside a model; whether two models number tokens alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintray.checkpoints.model_folder import ModelFolder
from tintray.errors import CheckpointError
from tintray.files import foreign, read_json

_TOKENIZER = "tokenizer.json"
_SIDE = 16_384  # pixels of a side, at most, that a processor resizes to
_LARGEST_TOKENIZER = 128 << 20  # bytes; that of the largest public vocabularies has 33 MB
_MOST_TOKENS = 1 << 24  # those of the largest public vocabularies are a million
_COMMON = 0.9  # of the tokens of the smaller vocabulary, which the other one has to know


def load_processor(model: ModelFolder, role: str, *, text: bool = False) -> Any:
    """The image processor, or the tokenizer, of an expert's folder.

    Raises CheckpointError if the folder has none.
    """
    return processor_in(model.preparing_folder, role, text=text)


def processor_in(folder: Path, role: str, *, text: bool = False) -> Any:
    """The image processor, or the tokenizer, in a folder; see ``load_processor``.

    Code of its own beside it is never run.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    file, what = (
        ("tokenizer.json", "tokenizer") if text else ("preprocessor_config.json", "image processor")
    )
    said = f"{role}: {folder} has no usable {file}; expected the {what} saved beside the expert"
    if text and not has_tokenizer(folder):
        raise CheckpointError(said)
    if text:
        _check_names(folder, said)
    auto = AutoTokenizer if text else AutoImageProcessor
    with foreign(said):
        processor = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not text:
        _check_sizes(processor, said)
    return processor


def _check_names(folder: Path, said: str) -> None:
    """Refuse names of options that act upon a terminal: tokenizers prints those it knows not."""
    for file in ("tokenizer_config.json", "special_tokens_map.json", _TOKENIZER):
        try:
            content = read_json(folder / file, said, limit=_LARGEST_TOKENIZER)
        except FileNotFoundError:
            continue
        if file == _TOKENIZER:
            _check_numbers(content, said)
        # Names in a vocabulary are tokens, and may be anything.
        held: list[Any] = [content.get("added_tokens") if file == _TOKENIZER else content]
        while held:
            value = held.pop()
            if isinstance(value, dict):
                for name in value:
                    if not name.isprintable():
                        raise CheckpointError(f"{said} ({file} has an option called {name!r:.60})")
                held += value.values()
            elif isinstance(value, list):
                held += value


def _check_numbers(tokenizer: Mapping[str, Any], said: str) -> None:
    """Refuse numbers of tokens that no model has: tables are made as long as the largest."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    listed = added if isinstance(added, list) else []
    numbers += [token.get("id") for token in listed if isinstance(token, dict)]
    for number in numbers:
        if isinstance(number, int | float) and not 0 <= number < _MOST_TOKENS:
            raise CheckpointError(f"{said} (a token has the number {number:,})")


def _check_sizes(processor: Any, said: str) -> None:
    """Refuse sizes that would turn one image into more memory than there is."""
    for name in ("size", "crop_size", "pad_size"):
        wanted = getattr(processor, name, None)
        held = wanted if isinstance(wanted, Mapping) else getattr(wanted, "__dict__", {"": wanted})
        for number in held.values():
            if number is not None and not (isinstance(number, int | float) and number <= _SIDE):
                raise CheckpointError(
                    f"{said} (its {name}, {wanted!r}, is beyond {_SIDE:,} pixels)"
                )


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder has the files of a tokenizer."""
    return any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
    )


def check_same_tokens(reference: Any, tokenizer: Any, reference_role: str, role: str) -> None:
    """Refuse a tokenizer that numbers tokens otherwise than ``reference``.

    All tasks share one table of embeddings, so a number has to be the same token for each of them.
    Either may know tokens that the other does not, such as one for padding.

    Raises CheckpointError, naming a token and both its numbers, or how few tokens they have in
    common.
    """
    known, found = reference.get_vocab(), tokenizer.get_vocab()
    common = known.keys() & found.keys()
    expected = "expected one tokenizer for all tasks, which share the embeddings"
    for token in sorted(common, key=lambda token: (found[token], token)):
        if known[token] != found[token]:
            raise CheckpointError(
                f"{role}: its tokenizer has the token {token!r} as number {found[token]}, and that "
                f"of {reference_role} as {known[token]}; {expected}"
            )
    if len(common) < _COMMON * min(len(known), len(found)):
        raise CheckpointError(
            f"{role}: its tokenizer has {len(found):,} tokens, of which that of {reference_role} "
            f"knows {len(common):,}; {expected}"
        )
