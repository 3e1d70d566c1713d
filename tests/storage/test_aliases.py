"""Aliases of merges, in a store of each kind."""

from __future__ import annotations

import pytest

from tests.storage.test_publish import FILES
from tintray.errors import NotFoundError, SpecError
from tintray.storage.artifacts.aliases import (
    aliases_of,
    read_alias,
    remove_alias,
    set_alias,
    split_alias,
)
from tintray.storage.artifacts.protocol import ArtifactStore
from tintray.storage.artifacts.publish import MergeRef, publish_merge


def test_an_alias_means_what_it_was_set_to_last(each_store: ArtifactStore) -> None:
    for version in (1, 2):
        publish_merge(each_store, "ten", FILES, {}, version=version)
    for version in (2, 1):
        set_alias(each_store, MergeRef("ten", version), "production")
        assert read_alias(each_store, "ten", "production") == MergeRef("ten", version)
    assert aliases_of(each_store, "ten") == ["production"]
    with pytest.raises(NotFoundError, match="did you mean 'ten/v2'"):
        set_alias(each_store, MergeRef("ten", 3), "production")
    remove_alias(each_store, "ten", "production")
    assert aliases_of(each_store, "ten") == []
    with pytest.raises(NotFoundError, match="has no alias 'production'"):
        remove_alias(each_store, "ten", "production")


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("ten@production", ("ten", "production")),
        ("s3://b/merges/ten@production/", ("s3://b/merges/ten", "production")),
        ("/a@b/merges/ten", None),
        ("/a/ten@production", None),  # a folder
        ("ten/v1", None),
        ("@production", None),
    ],
)
def test_what_is_an_alias(reference: str, found: tuple[str, str] | None) -> None:
    assert split_alias(reference) == found


def test_what_cannot_be_one() -> None:
    for reference in ("ten@", "ten@latest", "a b@c"):
        with pytest.raises(SpecError, match="expected letters, digits"):
            split_alias(reference)
