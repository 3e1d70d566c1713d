"""The image processor or the tokenizer that lies beside a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintray.checkpoints.model_folder import ModelFolder
from tintray.checkpoints.tokenizers import has_tokenizer
from tintray.errors import CheckpointError
from tintray.files import foreign, read_json

_SIDE = 16_384  # pixels of a side, at most, that a processor resizes to


_TOKENIZER = "tokenizer.json"


_LARGEST_TOKENIZER = 128 << 20  # bytes; that of the largest public vocabularies has 33 MB


_MOST_TOKENS = 1 << 24  # those of the largest public vocabularies are a million


def load_processor(model: ModelFolder, role: str, *, text: bool = False) -> Any:
    """The image processor, or the tokenizer, of an expert's folder.

    Raises
    ------
    CheckpointError
        If the folder has none.
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
        found = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not text:
        _check_sizes(found, said)
    return found


def _check_names(folder: Path, said: str) -> None:
    """Refuse names of options that act upon a terminal: tokenizers prints those it knows not."""
    for file in ("tokenizer_config.json", "special_tokens_map.json", _TOKENIZER):
        try:
            found = read_json(folder / file, said, limit=_LARGEST_TOKENIZER)
        except FileNotFoundError:
            continue
        if file == _TOKENIZER:
            _check_numbers(found, said)
        # Names in a vocabulary are tokens, and may be anything.
        held: list[Any] = [found.get("added_tokens") if file == _TOKENIZER else found]
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
