"""What prepares inputs: tokenizers of texts, processors of images.

A tokenizer that its file does not bound runs in a process of its own, and so it does here. But that
process is a copy of this one, which spares it a second of imports for each input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz import guard, raw, trees
from tests.fuzz.fixtures import files_below
from tests.fuzz.surface import Bench, Files, Surface
from tests.fuzz.surfaces.reading import fitted, is_text
from tintray.checkpoints.processors import processor_in
from tintray.data.reading import Examples
from tintray.pools import encoding, tokens
from tintray.pools.preparing import build_pool
from tintray.tasks.registry import find_kind

_ODD: tuple[Any, ...] = (
    *("AutoTokenizer", "BertTokenizer", "LlamaTokenizer", "ViTImageProcessor"),
    *("CLIPImageProcessor", "PreTrainedTokenizerFast", "TokenizersBackend", "BPE", "WordLevel"),
    *("Unigram", "WordPiece", "x", {"height": 16, "width": 16}, {"height": 0, "width": 5}),
    *({"height": 100_000, "width": 100_000}, {"shortest_edge": 8}, {"longest_edge": -1}, [0.5]),
    *([0.0, 0.0, 0.0], [1, 2, 3, 4], 1, 2, 3, 44, 99, {"AutoTokenizer": ["custom.Tok", None]}),
    *({"AutoImageProcessor": "custom.Proc"}, "[PAD]", "w1", "{{ raise }}"),
    *("{% for x in range(10**9) %}{% endfor %}", "{{ ''.__class__.__mro__ }}"),
    *("{% include '/etc/passwd' %}", "{{ messages[0]['content'] }}", "{{ 'x' * 10**10 }}", "{% if"),
)
_KEYS = {
    "tokenizer_config.json": (
        *("tokenizer_class", "auto_map", "model_max_length", "pad_token", "chat_template"),
        *("unk_token", "padding_side", "truncation_side", "added_tokens_decoder"),
        *("add_prefix_space", "eos_token", "model_input_names", "clean_up_tokenization_spaces"),
        *("extra_special_tokens", "backend"),
    ),
    "preprocessor_config.json": (
        *("image_processor_type", "size", "crop_size", "do_resize", "do_rescale", "rescale_factor"),
        *("image_mean", "image_std", "resample", "do_center_crop", "do_convert_rgb", "auto_map"),
        *("do_normalize", "data_format", "device", "return_tensors", "processor_class", "do_pad"),
    ),
    "tokenizer.json": (
        *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"),
        *("model", "post_processor", "decoder"),
    ),
}
_CUSTOM = b"import os\nos.system('true')\nclass Tok: pass\nclass Proc: pass\n"


def _seeds(fixtures: Path) -> list[Files]:
    text = files_below(fixtures / "text/expert")
    seen = files_below(fixtures / "zoo/three")
    tokenizer = {name: text[name] for name in text if "token" in name and name.endswith(".json")}
    return [tokenizer, {"preprocessor_config.json": seen["preprocessor_config.json"]}]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    name = rng.choice(list(files))
    changed = dict(files)
    if rng.random() < 0.1:
        changed[name] = raw.damaged_text(rng, files[name].decode())
    else:
        keys = _KEYS.get(name, ())
        changed[name] = trees.with_a_field(rng, json.loads(files[name]), keys, _ODD)
    if rng.random() < 0.05:
        changed["custom.py"] = _CUSTOM
    if rng.random() < 0.05:
        other = rng.choice(
            ("vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja", "x.json")
        )
        changed[other] = raw.damaged_text(rng, "w1\nw2\n[UNK]\n{}")
    if len(changed) > 1 and rng.random() < 0.03:
        changed.pop(rng.choice(list(changed)))
    return changed


def _copied(order: bytes, limits: Any) -> tuple[int, bytes, str]:
    """As ``tokens._apart``: exit code, answer and last words of a process that encodes."""
    places = [Path(name) for name in ("order", "answer", "said")]
    places[0].write_bytes(order)
    with guard.own_process():
        child = os.fork()
        if child == 0:
            try:
                for descriptor, place in enumerate(places):
                    mode = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT
                    os.dup2(os.open(place, mode), descriptor)
                sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
                sys.argv[1:] = ["2", str(limits.max_pool_bytes)]
                encoding._main()
                sys.stdout.flush()
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = places[2].read_text("utf-8", "replace")[-500:].strip().splitlines()
    return code, places[1].read_bytes(), f": {said[-1].strip()}" if said else ""


def _rows(bench: Bench, words: bool) -> tuple[dict[str, Any], str] | None:
    """A few examples for the input, and the kind of task that they are for."""
    if not is_text(bench):
        return None if words else ({"image": np.zeros((2, 16, 16, 3), np.uint8)}, "classification")
    if words:
        return {"tokens": [["w1", "w2"], ["w3"]]}, "token_classification"
    if b"chat_template" not in bench.content("tokenizer_config.json"):
        return {"text": ["w1 w2", "w3 w4 w5"]}, "language_modelling"
    roles = {"user": "w1", "assistant": "w2"}
    talk = [{"role": role, "content": text} for role, text in roles.items()]
    return {"messages": [talk]}, "language_modelling"


def _used(bench: Bench, words: bool = False) -> None:
    """Opened, and used on a few examples."""
    tokens._apart = _copied
    processor = processor_in(bench.folder, "expert", text=is_text(bench))
    rows = _rows(bench, words)
    if rows is not None:
        build_pool(Examples(rows[0]), processor, kind=find_kind(rows[1]), role="data")


def _validated(bench: Bench) -> None:
    tokens._apart = _copied
    expert = bench.fixtures / ("text/expert" if is_text(bench) else "zoo/three")
    for name in ("config.json", "model.safetensors"):
        (bench.folder / name).write_bytes((expert / name).read_bytes())
    fitted(bench)


_DRIVES = {"prepared": (75, _used), "words": (20, partial(_used, words=True))}
SURFACE = Surface(
    "tokenizers", 7, _seeds, _mutate, {**_DRIVES, "validate": (5, _validated)}, folder=True
)
