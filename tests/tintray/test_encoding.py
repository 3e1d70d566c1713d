"""A stranger's tokenizer and chat template: what they make, and that they end."""

from __future__ import annotations

from typing import Any

import pytest

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
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    known = json.loads(tiny.tokenizer().backend_tokenizer.to_str()) | options
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(known)),
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=32,
    )


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(expression: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }


def chat(template: str) -> tuple[Any, Examples]:
    return tiny.tokenizer(chat_template=template), Examples({"messages": [TALK]})


def test_a_process_of_its_own_makes_what_transformers_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers, answers and words, whether the tokenizer is run here or apart."""
    rows = [" ".join(row) for row in tiny.sentences(5, 3)]
    options = {"truncation": True, "max_length": 7}
    talk = tiny.tokenizer(chat_template=MARKED)
    whole = talk.apply_chat_template(
        [TALK], return_dict=True, return_assistant_tokens_mask=True, **options
    )
    apart = []
    monkeypatch.setattr(text, "_is_bounded", lambda tokenizer: False)
    for columns, tokenizer in (
        ({"messages": [TALK]}, talk),
        ({"text": rows, "text_pair": rows[::-1]}, tiny.tokenizer()),
        ({"tokens": [row.split() for row in rows]}, tiny.byte_level()),
        ({"text": rows}, made(normalizer=replace({"String": "w1"}, "w2"))),
    ):
        expected = encode(columns, tokenizer, options)
        found = text._encoded(Examples(columns), tokenizer, options, DataSource("x"), "data")
        assert found == expected
        apart.append(found)
    assert apart[0]["rows"]["input_ids"] == whole["input_ids"]
    assert apart[0]["assistant"] == whole["assistant_masks"]


def test_only_what_has_rules_of_its_own_is_run_apart() -> None:
    lower, prepend = {"type": "Lowercase"}, {"type": "Prepend", "prepend": "x"}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    for part in ({}, {"normalizer": lower}, {"pre_tokenizer": level}):
        assert text._is_bounded(made(**part))
    for part in (
        {"normalizer": replace({"String": "a"}, "aa")},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [lower, prepend],
            }
        },
        {"normalizer": {"type": "Sequence", "normalizers": [lower, lower]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [level, level]}},
        {"pre_tokenizer": split("a+")},
    ):
        assert not text._is_bounded(made(**part))


@pytest.mark.parametrize("template", [CENTURIES, TWICE, MARKED + CENTURIES])
def test_what_would_compute_for_ever_is_ended(template: str) -> None:
    tokenizer, examples = chat(template)
    with pytest.raises(
        DataError,
        match=r"two\.pool: the chat template of the expert took more than the 1 s that max_sec",
    ):
        build_pool(
            examples,
            tokenizer,
            kind=find_kind("language_modelling"),
            source=SECOND,
            role="tasks.two.pool",
        )


def test_expressions_of_a_tokenizer_are_ended() -> None:
    """Each search has a bound of the library's, a text has as many as it has letters."""
    tokenizer = made(pre_tokenizer=split("a*a*a*a*bd"))
    examples = Examples({"text": ["a" * 60 + "b bd"] * 20_000})
    with pytest.raises(DataError, match="the tokenizer of the expert took more than the 1 s"):
        build_pool(examples, tokenizer, kind=find_kind("language_modelling"), source=SECOND)


@pytest.mark.parametrize("what", ["template", "tokenizer"])
def test_what_would_take_all_memory_is_ended(what: str) -> None:
    if what == "template":
        tokenizer, examples = chat("{{ 'x' * 10**10 }}")
    else:
        more = [replace({"String": "w"}, "w" * 1000)] * 4
        tokenizer = made(normalizer={"type": "Sequence", "normalizers": more})
        examples = Examples({"text": ["w1"]})
    with pytest.raises(DataError, match="of the expert took more memory than max_pool_bytes"):
        build_pool(examples, tokenizer, kind=find_kind("language_modelling"), source=SMALL)


@pytest.mark.parametrize(
    "template", ["{{ ", "{{ raise_exception('no system role') }}", "{{ x.y.z }}"]
)
def test_a_template_that_fails_says_why(template: str) -> None:
    tokenizer, examples = chat(template)
    with pytest.raises(DataError, match=r"chat template of the expert cannot read the texts \(\w+"):
        build_pool(examples, tokenizer, kind=find_kind("language_modelling"))
