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
    local_folder,
    parse_store_url,
)


def test_folders_are_named_by_path_or_file_url_and_buckets_by_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = FolderUrl(tmp_path / "my data")
    for text in ("my data", "./my data", str(tmp_path / "my data"), place.root.as_uri()):
        assert parse_store_url(text) == place
    assert parse_store_url(tmp_path / "my data") == place
    assert parse_store_url(f"file://localhost{tmp_path}/my%20data") == place
    assert local_folder(place.root.as_uri()) == tmp_path / "my data"
    assert open_store("my data").url == f"file://{tmp_path}/my%20data"

    assert parse_store_url("s3://bucket") == parse_store_url("s3://bucket/") == S3Url("bucket", "")
    assert parse_store_url("s3://bucket/a/b/") == S3Url("bucket", "a/b")
    assert str(S3Url("bucket", "")) == "s3://bucket"
    assert str(S3Url("bucket", "a/b")) == "s3://bucket/a/b"
    assert local_folder("s3://bucket/a") is None


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "an empty name"),
        ("S4://bucket", r"scheme 's4://' \(did you mean 's3'"),
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
