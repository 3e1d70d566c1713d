"""Merges pushed to the hub, a bucket or a folder, and pulled from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants

import tintray
from tests import hub_server
from tests.answers import call
from tests.conftest import Published
from tests.hub_server import Hub
from tintray.errors import StorageError
from tintray.jobs.upkeep import sharing
from tintray.published.manifest import MANIFEST
from tintray.published.signatures import SIGNATURES
from tintray.seals import seal, unseal
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.artifacts.store import open_store

PLACE = "hf://org/tiny"
TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of our own, to which huggingface_hub itself speaks."""
    with hub_server.serving(TOKEN) as served:
        template = "/{repo_id}/resolve/{revision}/{filename}"  # HF_ENDPOINT, read at import
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture
def bucket(s3_url: str) -> str:
    return f"{s3_url}/shared"


def answers_alike(one: str, other: Path) -> None:
    merge, pulled = tintray.load(one), tintray.load(str(other))
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    for task in merge.tasks:
        assert torch.equal(merge.predict(task, inputs), pulled.predict(task, inputs))


def merge_tasks(published: Published) -> list[str]:
    return [task.name for task in published.summary.tasks]


def there(place: str, hub: Hub) -> dict[str, bytes]:
    """The files that lie at a place."""
    if place.startswith("hf://"):
        repo = hub.repos.get(place.removeprefix("hf://"))
        files = {} if repo is None else repo.commits[repo.head]
        return {name: data for name, data in files.items() if name != ".gitattributes"}
    store = open_store(place)
    return {entry.key: store.get(entry.key) for entry in store.list()}


@pytest.fixture(params=["hub", "bucket", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "bucket":
        return str(request.getfixturevalue("bucket"))
    return PLACE if request.param == "hub" else str(tmp_path / "pushed")


def test_a_merge_comes_back_as_it_was(
    published: Published, place: str, hub: Hub, tmp_path: Path
) -> None:
    url = published.summary.url
    said = call("push", url, place, "--dry-run", "--json").document
    assert (said["dry_run"], said["written"]) == (True, False)
    assert there(place, hub) == {}
    pushed = call("push", url, place, "--license", "apache-2.0", "--json").document
    assert pushed["written"]
    files = there(place, hub)
    assert sorted(files) == said["files"] == pushed["files"]
    assert files[MANIFEST] == (published.folder / MANIFEST).read_bytes()
    folder = tmp_path / "pulled"
    assert call("pull", place, folder, "--dry-run").code == 0
    assert not folder.exists()
    assert call("pull", place, folder, "--json").document["written"]
    answers_alike(url, folder)
    again = [call("push", url, place, "--json"), call("pull", place, folder, "--json")]
    assert [found.document["already"] for found in again] == [True, True]
    assert there(place, hub) == files


def test_the_card_has_what_the_hub_reads(published: Published, hub: Hub, tmp_path: Path) -> None:
    card = call("push", published.summary.url, PLACE, "--license", "mit")
    assert card.code == 0
    text = there(PLACE, hub)["README.md"].decode()
    read = ModelCard(text)
    read.validate()  # what the hub says of it; here it is our own server
    assert read.data.license == "mit"
    assert {"merge", "tintray"} <= set(read.data.tags)
    assert read.data.pipeline_tag == "image-classification"
    assert read.data.model_name == "tiny"
    results = {(one.dataset_name, one.metric_type): one for one in read.data.eval_results}
    assert {name for name, _ in results} == set(merge_tasks(published))
    for task in published.summary.tasks:
        assert results[task.name, task.metric].metric_value == task.merged


def test_a_new_repository_is_private_and_the_token_is_not_told(
    published: Published, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = published.summary.url
    said = call("push", url, PLACE)
    assert hub.repos["org/tiny"].private
    assert call("push", url, "hf://org/open", "--public").code == 0
    assert not hub.repos["org/open"].private
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrong")
    refused = [call("--debug", "pull", PLACE, tmp_path / "out"), call("push", url, "hf://org/new")]
    assert "set HF_TOKEN" in refused[0].err
    assert "set HF_TOKEN to a token that may" in refused[1].err
    for found in (said, *refused):
        assert "hf_secret" not in found.out + found.err
        assert "hf_wrong" not in found.out + found.err
    assert not (tmp_path / "out").exists()


def test_a_push_that_broke_off_shows_nothing_and_goes_on(published: Published, hub: Hub) -> None:
    hub.refuse_uploads_after = 1
    url = published.summary.url
    assert call("push", url, PLACE).code != 0
    assert there(PLACE, hub) == {}
    hub.refuse_uploads_after = None
    assert call("push", url, PLACE).code == 0
    large = [name for name in there(PLACE, hub) if name.endswith(".safetensors")]
    assert hub.uploads == len(large)  # none was sent twice


def test_a_bucket_shows_a_merge_once_all_of_it_is_there(
    published: Published, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, url = type(open_store(bucket)), published.summary.url
    put, written = kind.put, list[str]()

    def breaks_off(self: Any, key: str, *given: Any, **options: Any) -> bool:
        if len(written) == 3:
            raise StorageError("the connection broke")
        written.append(key)
        return bool(put(self, key, *given, **options))

    with monkeypatch.context() as broken:
        broken.setattr(kind, "put", breaks_off)
        with pytest.raises(StorageError):
            sharing.push(url, bucket)
    assert "holds no merge" in call("pull", bucket, tmp_path / "out").sentence
    first = list(written)

    def counted(self: Any, key: str, *given: Any, **options: Any) -> bool:
        written.append(key)
        return bool(put(self, key, *given, **options))

    monkeypatch.setattr(kind, "put", counted)
    sharing.push(url, bucket)
    assert not set(first) & set(written[3:])
    assert written[-1] == MANIFEST


def test_what_is_no_place_for_it_is_refused(
    published: Published, tmp_path: Path, hub: Hub, bucket: str
) -> None:
    url, store = published.summary.url, open_store(bucket)
    store.put("notes.txt", b"mine")
    assert "holds notes.txt" in call("push", url, bucket).sentence
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "is not empty" in call("push", url, tmp_path / "full").sentence
    assert "expected hf://org/name" in call("push", url, "hf://tiny").sentence
    assert "leave @main out" in call("push", url, "hf://org/tiny@main").sentence
    assert "whose --public this is" in call("push", url, tmp_path / "x", "--public").sentence
    assert "no repository" in call("pull", "hf://org/none", tmp_path / "out").sentence
    assert "holds no merge" in call("pull", tmp_path / "full", tmp_path / "out").sentence
    hub.repos["org/other"] = hub_server.Repo(private=False)
    hub.repos["org/other"].commit({"config.json": b"{}"})
    assert "holds no merge" in call("pull", "hf://org/other", tmp_path / "out").sentence


def changed(folder: Path, **fields: Any) -> None:
    """A manifest with other fields, sealed anew as anybody can."""
    path = folder / MANIFEST
    document = unseal(path.read_bytes(), "it") | fields
    path.write_bytes(seal(document, MANIFEST))


def test_another_merge_is_not_written_over(
    published: Published, tmp_path: Path, hub: Hub, bucket: str
) -> None:
    url = published.summary.url
    for place in (PLACE, bucket, str(tmp_path / "pushed")):
        assert call("push", url, place).code == 0
    assert call("export", url, tmp_path / "other").code == 0
    changed(tmp_path / "other", name="other")
    for place in (PLACE, bucket, str(tmp_path / "pushed")):
        assert "holds the merge tiny/v1" in call("push", tmp_path / "other", place).sentence
    changed(tmp_path / "other", name="tiny", version=2)
    assert call("push", tmp_path / "other", PLACE).code == 0  # a repository has its history
    assert call("pull", PLACE, tmp_path / "new").code == 0
    assert tintray.load(str(tmp_path / "new")).ref == "tiny/v2"


def test_a_repository_has_the_signatures_of_the_merge_that_lies_there(
    published: Published, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINTRAY_TRUST", call("new-key", tmp_path / "key", "--json").document["key"])
    monkeypatch.setenv("TINTRAY_REQUIRE_SIGNED", "")
    assert call("export", published.summary.url, tmp_path / "it").code == 0
    assert call("push", tmp_path / "it", PLACE).code == 0
    assert "is not signed" in call("pull", PLACE, tmp_path / "a", "--require-signed").sentence
    monkeypatch.setenv("TINTRAY_REQUIRE_SIGNED", "")
    assert call("sign", tmp_path / "it", "--key", tmp_path / "key").code == 0
    assert call("push", tmp_path / "it", PLACE, "--json").document["written"]
    assert call("push", tmp_path / "it", PLACE, "--json").document["already"]
    assert call("pull", PLACE, tmp_path / "a", "--require-signed").code == 0
    monkeypatch.setenv("TINTRAY_REQUIRE_SIGNED", "")
    (tmp_path / "it" / SIGNATURES).unlink()
    changed(tmp_path / "it", version=2)
    assert call("push", tmp_path / "it", PLACE).code == 0
    assert SIGNATURES not in there(PLACE, hub)  # they were of the version before


@pytest.mark.parametrize("where", ["hub", "bucket", "folder"])
def test_foreign_and_damaged_merges_are_refused(
    where: str, published: Published, tmp_path: Path, hub: Hub, request: pytest.FixtureRequest
) -> None:
    """Bytes of another hash or length, names that lead out, names of pickles."""
    folder, store = tmp_path / "it", FolderStore(tmp_path / "it")
    assert call("export", published.summary.url, folder).code == 0
    files = {entry.key: store.get(entry.key) for entry in store.list()}
    bucket = request.getfixturevalue("bucket") if where == "bucket" else ""

    def pulled(**written: bytes) -> str:
        names = written
        if where == "hub":
            hub.repos["org/tiny"] = hub_server.Repo(private=False)
            hub.repos["org/tiny"].commit(files | names)
            source = PLACE
        else:
            source = bucket or str(folder)
            there = open_store(source)
            for name, data in (names if any(there.list()) else files | names).items():
                there.put(name, data, overwrite=True)
        found = call("pull", source, tmp_path / "out")
        if where != "hub":
            for name in names.keys() & files.keys():
                there.put(name, files[name], overwrite=True)
        assert not (tmp_path / "out").exists()
        assert found.code != 0
        return found.err

    task = merge_tasks(published)[0]
    weights = files[f"tints/{task}.safetensors"]
    damaged = weights[:-1] + bytes([weights[-1] ^ 1])
    assert "sha256" in pulled(**{f"tints/{task}.safetensors": damaged})
    assert "bytes" in pulled(**{f"tints/{task}.safetensors": weights + b"0"})
    assert "truncated or altered" in pulled(**{MANIFEST: files[MANIFEST].replace(b"tiny", b"tinY")})
    document = json.loads(files[MANIFEST])
    entry = document["files"][f"tints/{task}.safetensors"]
    for name, words in {"../out.json": "outside", "pytorch_model.bin": "expected names"}.items():
        listed = {**document, "files": {**document["files"], name: entry}}
        beside = {} if name.startswith("..") else {name: weights}
        assert words in pulled(**beside, **{MANIFEST: seal(listed, MANIFEST)})
