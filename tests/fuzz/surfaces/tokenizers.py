"""What prepares inputs: tokenizers of texts, processors of images.

A tokenizer that its file does not bound runs in a process of its own, and so it does here. But that
process is a copy of this one, which spares it a second of imports for each input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz import guard, raw, trees
from tests.fuzz.fixtures import files_below
from tests.fuzz.surface import Bench, Files, Surface
from tests.fuzz.surfaces.reading import fit_job

_ODD: tuple[Any, ...] = (
    *(
        "AutoTokenizer",
        "BertTokenizer",
        "LlamaTokenizer",
        "ViTImageProcessor",
        "CLIPImageProcessor",
    ),
    *(
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
        "BPE",
        "WordLevel",
        "Unigram",
        "WordPiece",
        "x",
    ),
    *(
        {"height": 16, "width": 16},
        {"height": 0, "width": 5},
        {"height": 100_000, "width": 100_000},
    ),
    *(
        {"shortest_edge": 8},
        {"longest_edge": -1},
        [0.5],
        [0.0, 0.0, 0.0],
        [1, 2, 3, 4],
        1,
        2,
        3,
        44,
        99,
    ),
    *(
        {"AutoTokenizer": ["custom.Tok", None]},
        {"AutoImageProcessor": "custom.Proc"},
        "[PAD]",
        "w1",
    ),
    *("{{ raise }}", "{% for x in range(10**9) %}{% endfor %}", "{{ ''.__class__.__mro__ }}"),
    *("{% include '/etc/passwd' %}", "{{ messages[0]['content'] }}", "{{ 'x' * 10**10 }}", "{% if"),
)
_KEYS = {
    "tokenizer_config.json": (
        *(
            "tokenizer_class",
            "auto_map",
            "model_max_length",
            "pad_token",
            "chat_template",
            "unk_token",
        ),
        *(
            "padding_side",
            "truncation_side",
            "added_tokens_decoder",
            "add_prefix_space",
            "eos_token",
        ),
        *("model_input_names", "clean_up_tokenization_spaces", "extra_special_tokens", "backend"),
    ),
    "preprocessor_config.json": (
        *("image_processor_type", "size", "crop_size", "do_resize", "do_rescale", "rescale_factor"),
        *("image_mean", "image_std", "resample", "do_center_crop", "do_convert_rgb", "auto_map"),
        *("do_normalize", "data_format", "device", "return_tensors", "processor_class", "do_pad"),
    ),
    "tokenizer.json": (
        *(
            "version",
            "truncation",
            "padding",
            "added_tokens",
            "normalizer",
            "pre_tokenizer",
            "model",
        ),
        *("post_processor", "decoder"),
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
        tree = json.loads(files[name])
        times = rng.choice((1, 1, 2))
        if name in _KEYS and rng.random() < 0.6:
            tree[rng.choice(_KEYS[name])] = trees.odd(rng, _ODD)
            times = rng.choice((0, 0, 1))
        changed[name] = trees.as_json(rng, trees.damaged(rng, tree, _ODD, times))
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


_SECONDS = 2


def _copied(order: bytes, limits: Any) -> tuple[int, bytes, str]:
    """As ``tokens._apart``: exit code, answer and last words of a process that encodes."""
    from tintray.pools import encoding

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
                sys.argv[1:] = [str(_SECONDS), str(limits.max_pool_bytes)]
                encoding._main()
                sys.stdout.flush()
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = places[2].read_text("utf-8", "replace")[-500:].strip().splitlines()
    return code, places[1].read_bytes(), f": {said[-1].strip()}" if said else ""


def _use_copies() -> None:
    from tintray.pools import tokens

    tokens._apart = _copied


def _is_text(bench: Bench) -> bool:
    return (bench.folder / "tokenizer.json").exists()


def _prepared(bench: Bench) -> None:
    """Opened, and used on a few examples."""
    _use_copies()
    from tintray.checkpoints.processors import processor_in
    from tintray.data.reading import Examples
    from tintray.pools.preparing import build_pool
    from tintray.tasks.registry import find_kind

    text = _is_text(bench)
    processor = processor_in(bench.folder, "expert", text=text)
    if not text:
        images = np.zeros((2, 16, 16, 3), np.uint8)
        build_pool(Examples({"image": images}), processor, role="data")
        return
    talk = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    columns: dict[str, Any] = {"text": ["w1 w2", "w3 w4 w5"]}
    if b"chat_template" in bench.content("tokenizer_config.json"):
        columns = {"messages": [talk]}
    build_pool(Examples(columns), processor, kind=find_kind("language_modelling"), role="data")


def _words(bench: Bench) -> None:
    _use_copies()
    from tintray.checkpoints.processors import processor_in
    from tintray.data.reading import Examples
    from tintray.pools.preparing import build_pool
    from tintray.tasks.registry import find_kind

    text = _is_text(bench)
    processor = processor_in(bench.folder, "expert", text=text)
    if text:
        rows = Examples({"tokens": [["w1", "w2"], ["w3"]]})
        build_pool(rows, processor, kind=find_kind("token_classification"), role="data")


def _validated(bench: Bench) -> None:
    _use_copies()
    text = _is_text(bench)
    zoo = bench.fixtures / ("text" if text else "zoo")
    expert = zoo / ("expert" if text else "three")
    for name in ("config.json", "model.safetensors"):
        (bench.folder / name).write_bytes((expert / name).read_bytes())
    (bench.folder / "pool.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w3"}\n')
    pool = "pool.jsonl" if text else bench.fixtures / "zoo/three.npz"
    fit_job(bench, bench.folder, pool, text=text)


SURFACE = Surface(
    "tokenizers",
    7,
    _seeds,
    _mutate,
    {"prepared": (75, _prepared), "words": (20, _words), "validate": (5, _validated)},
    folder=True,
)
