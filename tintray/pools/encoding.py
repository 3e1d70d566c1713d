"""Texts through somebody else's tokenizer; run as a script, in a process that does nothing else.

A tokenizer's file has regular expressions and rules that replace texts, and its chat template is a
program: how long they run and what they make is bounded by nothing but the process that they run
in. That process starts from this file alone, so nothing of the package is imported here.
"""

from __future__ import annotations

import json
import pickle
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_OVERHEAD = 2**30  # bytes that Python, the libraries and a vocabulary may take in such a process
_LONGEST = 10**9  # seconds that a timer takes on every system


def encode(
    columns: Mapping[str, Any], tokenizer: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a tokenizer makes of texts: ``rows``, lists of numbers by their names, and what follows.

    ``words`` has the number of the word of each token, if the texts are words; ``assistant`` has
    1 for each token of an assistant's answer, if the texts are conversations and the template marks
    answers.
    """
    words: list[list[int | None]] | None = None
    assistant: list[list[int]] | None = None
    if "messages" in columns:
        template = tokenizer.get_chat_template()
        marks = "{% generation" in template or "{%- generation" in template
        settings = {"return_dict": True, "return_assistant_tokens_mask": marks, **options}
        made = tokenizer.apply_chat_template(columns["messages"], tokenize=True, **settings)
        assistant = made.pop("assistant_masks") if marks else None
    elif "tokens" in columns:
        if isinstance(getattr(tokenizer, "add_prefix_space", None), bool):
            tokenizer.add_prefix_space = True  # byte-level tokenizers refuse words otherwise
        made = tokenizer(columns["tokens"], is_split_into_words=True, **options)
        words = [made.word_ids(row) for row in range(len(columns["tokens"]))]
    else:
        made = tokenizer(columns["text"], columns.get("text_pair"), **options)
    rows = {name: [list(row) for row in made[name]] for name in made}
    return {"rows": rows, "words": words, "assistant": assistant}


def _main() -> None:
    """Answer an order on standard input by JSON on standard output, within its bounds."""
    sys.path += sys.argv[3:]  # at the end: a file of the user's must hide none of the library's
    with suppress(ImportError, ValueError, OSError):  # no such bound on this system
        import resource

        most = int(sys.argv[2]) + _OVERHEAD
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    order = pickle.load(sys.stdin.buffer)
    # The system ends the process, whatever it does then, and though nobody waits for it any more.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, min(int(sys.argv[1]), _LONGEST))
    try:
        answer = encode(*order)
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 - Rust panics with exceptions of its own
        lines = str(error).strip().splitlines()
        answer = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:2000]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
