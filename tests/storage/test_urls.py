"""Store URLs and keys: what is accepted, what is refused, what is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tintray.errors import InputError, SpecError
from tintray.storage.artifacts.store import open_store
from tintray.storage.artifacts.urls import (
    FolderUrl,
    S3Url,
    check_name,
    join,
    local_folder,
    parse_store_url,
)
from tintray.storage.secrets import redact, scrub


def test_folders_are_named_by_path_or_file_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = FolderUrl(tmp_path / "my data")
    for text in ("my data", "./my data", str(tmp_path / "my data"), str(place)):
        assert parse_store_url(text) == place
    assert parse_store_url(tmp_path / "my data") == place
    assert parse_store_url(f"file://localhost{tmp_path}/my%20data") == place
    assert local_folder(str(place)) == tmp_path / "my data"
    assert open_store("my data").url == str(place) == f"file://{tmp_path}/my%20data"


def test_buckets_are_named_by_s3_urls() -> None:
    assert parse_store_url("s3://bucket") == parse_store_url("s3://bucket/") == S3Url("bucket", "")
    assert parse_store_url("s3://bucket/a/b/") == S3Url("bucket", "a/b")
    assert str(S3Url("bucket", "")) == "s3://bucket"
    assert str(S3Url("bucket", "a/b")) == "s3://bucket/a/b"
    assert local_folder("s3://bucket/a") is None
    assert join("s3://bucket/a", "merges/x/v1") == "s3://bucket/a/merges/x/v1"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "an empty name"),
        ("S4://bucket", "scheme 's4://'; did you mean 's3'"),
        ("gs://bucket", "scheme 'gs://'"),
        ("s3://", "bucket name ''"),
        ("s3://a", "bucket name 'a'"),
        ("s3://bucket/../other", "would leave the store"),
        ("file://host/path", "found the host 'host'"),
        ("file://relative", "found the host 'relative'"),
    ],
)
def test_other_urls_are_refused(url: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem.replace("?", r"\?")):
        parse_store_url(url)


@pytest.mark.parametrize(
    "name",
    ["a\n", "\na", "a\r", "", "latest", "..", ".a", "-a", "a/b", "a b", "a" * 101, "ä", "a\x00"],
)
def test_names_that_are_no_part_of_a_path_are_refused(name: str) -> None:
    assert check_name("a.b_c-1") == "a.b_c-1"
    with pytest.raises(SpecError, match=r"^name: expected letters") as raised:
        check_name(name)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hunter2@bucket/prefix",
        "s3://bucket/prefix?secret=hunter2",
        "file://me:hunter2@host/path",
    ],
)
def test_credentials_in_a_store_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse_store_url(url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hunter2/x@host/db", "postgresql://me:***@host/db"),
        ("at http://:hunter2@host: refused", "at http://:***@host: refused"),
        ("host=x password=hunter2 user=y", "host=x password=*** user=y"),
        ("http://h/?password=hunter2&x=1", "http://h/?password=***&x=1"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("pad_token=[PAD] at 10:30 x@y", "pad_token=[PAD] at 10:30 x@y"),
    ],
)
def test_passwords_are_redacted_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert scrub({"a": [text, (text, 1, None)]}) == {"a": [shown, [shown, 1, None]]}
