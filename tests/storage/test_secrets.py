"""Passwords: whatever is in one, nothing that is shown, stored or sent has it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tintray.errors import InputError, SpecError, TintrayError
from tintray.jobs.config.job_file import parse_spec
from tintray.jobs.config.locations import catalog_location
from tintray.jobs.queue.handover import environment
from tintray.storage import secrets
from tintray.storage.artifacts.urls import parse_store_url
from tintray.storage.catalog.engine import make_engine, parse_catalog_url
from tintray.storage.secrets import HIDDEN, has_secret, redact, scrub, shown_url

RARE = "QXZKVJW"  # no text of ours has two of them side by side
HARD = "'\" @:/%?#&;=\\,*()[]{}<>|`$!+ü"
PASSWORDS = st.text(st.sampled_from(HARD + 3 * RARE), min_size=4, max_size=20).map("ZX{}QK".format)
FORMS: dict[str, Callable[[str], str]] = {
    "encoded": lambda word: f"postgresql+psycopg://user:{quote(word, safe='')}@db/t",
    "as typed": lambda word: f"postgresql+psycopg://user:{word}@db/t",
    "without a user": lambda word: f"postgresql://:{word}@db:5432/t",
    "password in the query": lambda word: f"postgresql://db/t?password={quote_plus(word)}",
    "as typed in the query": lambda word: f"postgresql://user@db/t?sslpassword={word}&port=1",
    "another field": lambda word: f"postgresql:///t?host=/run/pg&options={quote_plus(word)}",
    "in a host of the query": lambda word: f"postgresql:///t?host=me:{quote_plus(word)}%40db",
    "several hosts": lambda word: f"postgresql://user:{quote(word, safe='')}@/t?host=a:1&host=b:2",
    "the driver misspelt": lambda word: f"postgresql+pysopg://user:{word}@db/t",
    "SQLite": lambda word: f"sqlite:///catalog.db?password={quote_plus(word)}",
    "no host": lambda word: f"postgresql://user:{word.replace('@', '')}",
    "a slash in the user": lambda word: f"postgresql://us/er:{word}@db/t",
}


def pieces(word: str) -> set[str]:
    """A password as it may be written, and every part of it that no text has by chance."""
    whole = {word, quote(word, safe=""), quote_plus(word), repr(word)[1:-1], json.dumps(word)[1:-1]}
    return whole | set(re.findall(f"[{RARE}]{{2,}}", word))


def none_of(word: str, text: str) -> None:
    found = [piece for piece in pieces(word) if piece in text]
    assert not found, f"{found} in {text!r}"


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    """Secrets of other tests would be hidden in this one's texts too."""
    kept = set(secrets._learnt)
    yield
    secrets._learnt.clear()
    secrets._learnt.update(kept)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(word=PASSWORDS)
def test_no_part_of_a_password_is_shown_stored_or_sent(form: str, word: str) -> None:
    url = FORMS[form](word)
    said = [shown_url(url), json.dumps(scrub({"catalog": url}))]
    said.append(json.dumps(dict(environment(url))))
    assert has_secret(url)
    for use in (
        lambda: catalog_location(url, Path("/")),
        lambda: make_engine(parse_catalog_url(url)),
        lambda: parse_spec({"name": "x", "catalog": url, "fit": 3}),
        lambda: parse_spec({"name": "x", "store": url, "base": url, "cluster": {"address": url}}),
    ):
        try:
            use()
        except (TintrayError, ValueError) as error:
            said.append(str(error))
    for text in said:
        none_of(word, text)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(word=PASSWORDS, before=st.sampled_from(["", "at ", "--set catalog=", "'", "\x1b[31m"]))
def test_a_log_that_quotes_a_url_is_kept_without_its_password(
    form: str, word: str, before: str
) -> None:
    none_of(word, redact(f"first\n{before}{FORMS[form](word)}\nlast"))


@settings(max_examples=200, deadline=None)
@given(word=PASSWORDS)
def test_a_password_that_is_known_is_hidden_however_it_is_written(word: str) -> None:
    url = FORMS["encoded"](word)
    parse_catalog_url(url)
    for text in (word, repr(word), json.dumps(word), quote(word), f"PGPASSWORD={word} psql"):
        none_of(word, redact(f"FATAL: {text} was refused"))


@pytest.mark.parametrize(
    "url",
    [
        *("postgresql://me@host/db", "postgresql+psycopg://me@host:5432/db?sslmode=require"),
        *("sqlite:////data/a b/catalog.db", "sqlite:////data/x@y:z/catalog.db?mode=ro"),
        *("postgresql:///db?host=/run/postgresql", "postgresql://user%40tenant@host/db"),
    ],
)
def test_a_url_without_a_secret_is_shown_and_sent_as_it_is(url: str) -> None:
    assert shown_url(url) == scrub(url) == redact(url) == url
    assert redact(f"the catalog {url} cannot be used") == f"the catalog {url} cannot be used"
    assert environment(url)["TINTRAY_CATALOG"] == url


@pytest.mark.parametrize(
    "url",
    [
        *("s3://AKIAKEY:{}@bucket/prefix", "s3://AKIAKEY:{}/bucket", "s3://bucket/p?secret={}"),
        *("file://me:{}@host/path", "https://me:{}@host/x"),
    ],
)
@settings(max_examples=40, deadline=None)
@given(word=PASSWORDS)
def test_credentials_in_a_store_url_are_refused_and_not_repeated(url: str, word: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_store_url(url.format(word))
    none_of(word, str(raised.value))
    with pytest.raises(SpecError) as refused:
        parse_spec({"name": "x", "base": "/", "store": url.format(word)})
    none_of(word, str(refused.value))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hunter2/x@host/db", "postgresql://me:***@host/db"),
        ("at http://:hunter2@host: refused", "at http://:***@host: refused"),
        ("host=x password=hunter2 user=y", "host=x password=*** user=y"),
        ("http://h/?password=hunter2&x=1", "http://h/?password=***&x=1"),
        *((text, text) for text in ("postgresql://me@host/db", "s3://bucket/a?b", HIDDEN)),
        *((text, text) for text in ("pad_token=[PAD] at 10:30 x@y", "hf://org/name")),
    ],
)
def test_passwords_are_redacted_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert scrub({"a": [text, (text, 1, None)]}) == {"a": [shown, [shown, 1, None]]}
