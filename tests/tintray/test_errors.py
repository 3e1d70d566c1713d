"""An error's message is one printable line, whatever it quotes."""

from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tintray import errors
from tintray.errors import MAX_SENTENCE, SpecError, TintrayError, printable

TREE = [kind for kind in vars(errors).values() if getattr(kind, "exit_code", 0)]


@given(st.text(st.characters(categories=["C", "Z", "L"])))
def test_nothing_printable_is_lost_and_nothing_else_is_left(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(c) not in errors._UNPRINTABLE for c in shown)
    if shown.isascii() and "\\" not in text:
        assert shown.encode().decode("unicode_escape") == text


@pytest.mark.parametrize("kind", TREE)
@given(st.text(max_size=2000))
def test_a_message_is_one_short_line_in_every_process(kind: type[TintrayError], text: str) -> None:
    error = kind(text)
    assert len(str(error)) <= MAX_SENTENCE
    assert len(str(error).splitlines()) <= 1
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_long_message_keeps_what_is_wrong_and_what_to_do() -> None:
    message = str(SpecError(f"job.yaml: name: found {'x' * 10_000}; give it a shorter one"))
    assert message.startswith("job.yaml: name: found xxx")
    assert message.endswith("xxx; give it a shorter one")
    assert str(SpecError("a\x1b[2Jb\u202ec\nd")) == "a\\x1b[2Jb\\u202ec\\nd"
