"""What inputs refer to: the tiny zoo, a published merge of it, a tiny language model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny_models import tokenizer
from tests.tiny_zoo import make_zoo
from tintray.jobs import api

_LLAMA = {"vocab_size": 44, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
_LLAMA |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}


def make(folder: Path) -> None:
    """Write them below ``folder``: ``zoo``, ``store``, ``text``."""
    torch.set_num_threads(1)
    folder.mkdir()
    zoo = make_zoo(folder / "zoo")
    chosen = zoo.spec(folder / "store", ("two", "three"), fit={"rounds": 1})
    api.run(chosen)
    api.run(chosen)  # a second version, that was grown from nothing too
    for name, seed in (("base", 1), ("expert", 2), ("other", 3)):
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**_LLAMA)).save_pretrained(folder / "text" / name)
        tokenizer().save_pretrained(folder / "text" / name)


def files_below(folder: Path) -> dict[str, bytes]:
    """The files in a folder, by their names below it."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
