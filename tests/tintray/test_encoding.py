"""A stranger's tokenizer and chat template: what they make, and that they end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests import tiny_models as tiny
from tintray.data.reading import Examples
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.limits import Limits
from tintray.pools import tokens as text
from tintray.pools.encoding import encode
from tintray.pools.preparing import build_pool
from tintray.tasks.registry import find_kind

TALK = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
MARKED = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %} {% endfor %}"
CENTURIES = "".join("{% for x in range(99999) %}" for _ in range(6)) + "{% endfor %}" * 6
TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}"
SECOND = DataSource("x", limits=Limits(max_seconds=1))
SMALL = DataSource("x", limits=Limits(max_pool_bytes=2**20))


def made(**options: Any) -> Any:
    """A tokenizer whose file has ``options`` in place of its own parts."""
    parts = json.loads(tiny.tokenizer().backend_tokenizer.to_str()) | options
    backend, special = Tokenizer.from_str(json.dumps(parts)), {"pad": "[PAD]", "unk": "[UNK]"}
    names = {f"{name}_token": token for name, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names)


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(name: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(parts)}


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
            "invert": False}  # fmt: skip


def chat(template: str) -> tuple[Examples, Any]:
    return Examples({"messages": [TALK]}), tiny.tokenizer(chat_template=template)


def refused(examples: Examples, tokenizer: Any, source: DataSource, words: str) -> None:
    kind = find_kind("language_modelling")
    with pytest.raises(DataError, match=words):
        build_pool(examples, tokenizer, kind=kind, source=source, role="tasks.two.pool")


def test_a_process_of_its_own_makes_what_transformers_makes(monkeypatch: Any) -> None:
    """Numbers, answers and words, whether the tokenizer is run here or apart."""
    rows = [" ".join(row) for row in tiny.sentences(5, 3)]
    options = {"truncation": True, "max_length": 7}
    talk = tiny.tokenizer(chat_template=MARKED)
    marked = {"return_dict": True, "return_assistant_tokens_mask": True}
    whole = talk.apply_chat_template([TALK], **marked, **options)
    apart = []
    monkeypatch.setattr(text, "_is_bounded", lambda tokenizer: False)
    for columns, tokenizer in (
        ({"messages": [TALK]}, talk),
        ({"text": rows, "text_pair": rows[::-1]}, tiny.tokenizer()),
        ({"tokens": [row.split() for row in rows]}, tiny.byte_level()),
        ({"text": rows}, made(normalizer=replace({"String": "w1"}, "w2"))),
    ):
        expected = encode(columns, tokenizer, options)
        apart.append(text._encoded(Examples(columns), tokenizer, options, DataSource("x"), "data"))
        assert apart[-1] == expected
    assert apart[0]["rows"]["input_ids"] == whole["input_ids"]
    assert apart[0]["assistant"] == whole["assistant_masks"]


def test_only_what_has_rules_of_its_own_is_run_apart() -> None:
    lower, prepend = {"type": "Lowercase"}, {"type": "Prepend", "prepend": "x"}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    for part in ({}, {"normalizer": lower}, {"pre_tokenizer": level}):
        assert text._is_bounded(made(**part))
    for part in (
        {"normalizer": replace({"String": "a"}, "aa")},
        {"normalizer": sequence("normalizers", lower, prepend)},
        {"normalizer": sequence("normalizers", lower, lower)},
        {"pre_tokenizer": sequence("pretokenizers", level, level)},
        {"pre_tokenizer": split("a+")},
    ):
        assert not text._is_bounded(made(**part))


@pytest.mark.parametrize("template", [CENTURIES, TWICE, MARKED + CENTURIES])
def test_what_would_compute_for_ever_is_ended(template: str) -> None:
    words = r"two\.pool: the chat template of the expert took more than the 1 s that max_seconds"
    refused(*chat(template), SECOND, words)


def test_expressions_of_a_tokenizer_are_ended() -> None:
    """Each search has a bound of the library's, a text has as many as it has letters."""
    tokenizer = made(pre_tokenizer=split("a*a*a*a*bd"))
    examples = Examples({"text": ["a" * 60 + "b bd"] * 20_000})
    refused(examples, tokenizer, SECOND, "the tokenizer of the expert took more than the 1 s")


def test_what_would_take_all_memory_is_ended() -> None:
    words = "of the expert took more memory than max_pool_bytes"
    refused(*chat("{{ 'x' * 10**10 }}"), SMALL, words)
    more = sequence("normalizers", *[replace({"String": "w"}, "w" * 1000)] * 4)
    refused(Examples({"text": ["w1"]}), made(normalizer=more), SMALL, words)


@pytest.mark.parametrize(
    "template", ["{{ ", "{{ raise_exception('no system role') }}", "{{ x.y.z }}"]
)
def test_a_template_that_fails_says_why(template: str) -> None:
    words = r"chat template of the expert cannot read the texts \(\w+"
    refused(*chat(template), DataSource("x"), words)
