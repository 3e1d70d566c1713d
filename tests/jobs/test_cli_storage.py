"""The commands that look after a store and a catalog, on a real job in a folder and SQLite."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.answers import call
from tests.tiny_zoo import TinyZoo
from tintray.jobs import api
from tintray.jobs.upkeep import doctor
from tintray.seals import unseal
from tintray.storage.artifacts.blobs import BlobRef, blob_key, put_blob
from tintray.storage.artifacts.publish import list_merges
from tintray.storage.artifacts.records import seal
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.migrations import REVISIONS
from tintray.storage.catalog.states import JobState

GC = ("gc", "--older-than", "0")

TO_0001 = """
DROP INDEX ix_jobs_name_created_at; DROP INDEX ix_merges_parent_id;
DROP TABLE checks; DROP TABLE checkpoints; DROP TABLE clusters;
DROP INDEX ix_jobs_created_at; DROP INDEX ix_jobs_key;
ALTER TABLE jobs DROP COLUMN priority; ALTER TABLE jobs DROP COLUMN key;
ALTER TABLE jobs DROP COLUMN digest; ALTER TABLE jobs DROP COLUMN cluster;
ALTER TABLE jobs DROP COLUMN attempt; ALTER TABLE jobs DROP COLUMN handed_at;
ALTER TABLE jobs DROP COLUMN stop_at; ALTER TABLE jobs DROP COLUMN stop_reason;
ALTER TABLE merges DROP COLUMN removed_at; UPDATE tintray_schema SET version_num = '0001';
"""


@pytest.fixture(scope="module")
def store(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one merge, ``tiny/v1``, which tests leave as it is."""
    folder = tmp_path_factory.mktemp("upkeep") / "store"
    api.run(tiny.spec(folder))
    return folder


@pytest.fixture
def place(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the store of the commands."""
    monkeypatch.setenv("TINTRAY_STORE", str(store))
    monkeypatch.delenv("TINTRAY_CATALOG", raising=False)
    return store


@pytest.fixture
def copied(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of one's own with a copy of the merge, which the commands then work on."""
    ask("copy", "tiny", tmp_path / "copy")
    monkeypatch.setenv("TINTRAY_STORE", str(tmp_path / "copy"))
    return tmp_path / "copy"


def ask(*words: object, code: int = 0) -> Any:
    """The JSON document of a command that ends with this code."""
    found = call(*words, "--json")
    assert found.code == code, found
    return json.loads(found.out)


def say(*words: object, code: int = 0) -> str:
    """What a command writes for people."""
    found = call(*words)
    assert found.code == code, found
    return found.out


def refused(*words: object) -> str:
    return call(*words).sentence


def keys(store: Path) -> list[str]:
    return [entry.key for entry in open_store(store).list() if not entry.key.startswith("catalog")]


def damage(path: Path, at: int = -1) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))  # a blob is the same file


# Artifacts


@pytest.mark.usefixtures("place")
def test_ls_tells_what_there_is_and_who_needs_it() -> None:
    lines = ask("artifacts", "ls")
    assert all(line["in_store"] and line["needed_by"] == ["merge tiny/v1"] for line in lines)
    assert {line["kind"] for line in lines} >= {"task-vector", "self-labels", "tint", "backbone"}
    assert sum(line["kind"] == "task-vector" for line in lines) == 4
    assert [line["kind"] for line in ask("artifacts", "ls", "--kind", "base")] == ["base"]
    assert "merge tiny/v1" in say("artifacts", "ls")
    assert "did you mean 'tint'?" in refused("artifacts", "ls", "--kind", "tnt")


def test_ls_shows_what_only_the_store_or_only_the_catalog_knows(copied: Path) -> None:
    unknown = put_blob(open_store(copied), b"unknown").sha256
    gone = next(line for line in ask("artifacts", "ls") if line["kind"] == "tint")["sha256"]
    open_store(copied).delete(blob_key(gone))
    found = {line["sha256"]: line for line in ask("artifacts", "ls")}
    assert (found[unknown]["kind"], found[unknown]["needed_by"]) == ("unknown", [])
    assert [sha256 for sha256, line in found.items() if not line["in_store"]] == [gone]
    assert "(not in the store)" in say("artifacts", "ls")


def test_verify_names_what_is_damaged_and_exits_with_1(copied: Path) -> None:
    assert ask("artifacts", "verify")["damaged"] == []
    assert "all as they were written" in say("artifacts", "verify", "tiny")
    key = next(key for key in keys(copied) if key.startswith("blobs/"))
    damage(copied / key)
    for words in (("artifacts", "verify"), ("artifacts", "verify", "tiny/v1")):
        (damaged,) = ask(*words, code=1)["damaged"]
        assert (damaged["key"], damaged["needed_by"]) == (key, ["merge tiny/v1"])
    assert key in say("artifacts", "verify", code=1)


def test_an_altered_manifest_is_not_opened(copied: Path) -> None:
    path = copied / "merges/tiny/v1/manifest.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"rounds": 4', b'"rounds": 5'))
    (damaged,) = ask("artifacts", "verify", code=1)["damaged"]
    assert damaged["key"] == "merges/tiny/v1/manifest.json"
    assert call("show", "tiny").code == 1


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "configs/two/../../../escaped"])
def test_a_manifest_that_leads_out_of_its_merge_is_refused(
    copied: Path, tmp_path: Path, name: str
) -> None:
    path = copied / "merges/tiny/v1/manifest.json"
    document = unseal(path.read_bytes(), "it")
    document["files"][name] = document["files"]["configs/two/config.json"]
    path.chmod(0o644)
    path.write_bytes(seal(document, "it"))
    for words in (
        ("show", "tiny"),
        ("export", "tiny", "--task", "two", tmp_path / "out" / "two"),
        ("copy", "tiny", tmp_path / "out" / "store"),
    ):
        assert "outside of the merge" in refused(*words)
    assert not (tmp_path / "out" / "two").exists()
    assert list(tmp_path.rglob("escaped")) == []


def test_a_pin_keeps_an_artifact(copied: Path) -> None:
    sha256 = put_blob(open_store(copied), b"precious").sha256
    with Catalog.open(f"sqlite:///{copied}/catalog.db") as catalog:
        catalog.artifacts.record([KnownArtifact(BlobRef(sha256, 8), "checkpoint")])
    assert ask("artifacts", "pin", sha256[:12])["needed_by"] == ["pin"]
    assert ask(*GC)["garbage"] == []
    assert "gc may take it" in say("artifacts", "pin", sha256, "--remove")
    assert [line["key"] for line in ask(*GC)["garbage"]] == [blob_key(sha256)]
    assert "six or more digits" in refused("artifacts", "pin", "0")
    assert "artifacts ls" in refused("artifacts", "pin", "f" * 64)


# Garbage


def test_gc_deletes_only_when_told_to_and_only_what_nobody_needs(
    copied: Path, tmp_path: Path
) -> None:
    before = keys(copied)
    garbage = put_blob(open_store(copied), b"garbage").sha256
    assert ask("gc")["young"] == 1
    listed = ask("gc", "--older-than", "0s")
    assert (listed["dry_run"], len(listed["garbage"])) == (True, 1)
    assert "--delete does it" in say(*GC)
    assert blob_key(garbage) in keys(copied)
    done = ask(*GC, "--delete")
    assert done["garbage"] == listed["garbage"]
    assert (done["dry_run"], done["garbage_bytes"]) == (False, len(b"garbage"))
    assert keys(copied) == before
    assert ask("artifacts", "verify")["damaged"] == []
    say("export", "tiny", "--task", "two", tmp_path / "two")


def test_gc_spares_what_a_job_has_used_until_it_is_over(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was killed while fitting may be continued; one that failed is over."""
    from tintray.jobs.events import RoundDone

    store = tmp_path / "store"
    monkeypatch.setenv("TINTRAY_STORE", str(store))
    during: list[Any] = []

    def watch(event: object) -> None:
        if isinstance(event, RoundDone) and event.round == 2:
            during.extend((ask(*GC, "--delete"), ask("artifacts", "ls")))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.run(tiny.spec(store), on_event=watch)
    assert during[0]["garbage"] == []
    assert all(line["needed_by"][0].startswith("job tiny-") for line in during[1])
    freed = ask(*GC, "--delete")
    assert {line["reason"] for line in freed["garbage"]} == {
        "needed by no merge, job or pin",
        "a cached result, needed by no merge, job or pin",
    }
    assert keys(store) == []
    api.run(tiny.spec(store))  # what was swept is computed again
    assert ask("artifacts", "verify")["damaged"] == []


# Merges


def test_a_copy_is_the_same_merge_in_another_store(place: Path, copied: Path) -> None:
    names = [path.relative_to(place) for path in (place / "merges").rglob("*") if path.is_file()]
    assert len(names) == 23
    for name in names:
        assert (copied / name).read_bytes() == (place / name).read_bytes(), name
    (listed,) = ask("list")
    assert (listed["name"], listed["version"], listed["tasks"]) == ("tiny", "v1", 4)
    assert listed["url"] == (copied / "merges/tiny/v1").as_uri()
    assert ask("copy", "tiny", copied, "--store", place)["url"] == listed["url"]
    assert "already" in refused("copy", "tiny", copied)
    assert "DEST" in refused("copy", "tiny", "gs://x")


def test_a_damaged_merge_is_put_right_by_copying_it_again(copied: Path, place: Path) -> None:
    damage(copied / "merges/tiny/v1/backbone.safetensors", at=100)
    (damaged,) = ask("artifacts", "verify", code=1)["damaged"]
    ask("copy", "tiny", copied, "--store", place)
    assert ask("artifacts", "verify")["damaged"] == []
    (copied / damaged["key"]).unlink()
    shutil.rmtree(copied / "merges/tiny/v1")
    assert len(ask("artifacts", "verify", code=1)["damaged"]) == 2
    ask("copy", "tiny", copied, "--store", place)
    assert ask("artifacts", "verify")["damaged"] == []
    assert len(ask("list")) == 1


def test_a_copy_of_a_damaged_merge_is_not_published(copied: Path, tmp_path: Path) -> None:
    damage(copied / "merges/tiny/v1/tints/two.safetensors")
    assert call("copy", "tiny", tmp_path / "second").code == 1
    assert list_merges(open_store(tmp_path / "second")) == []


def test_a_removed_merge_is_gone_and_its_version_with_it(copied: Path) -> None:
    removed = ask("delete", "tiny")
    assert (removed["merge"], removed["unneeded_bytes"] > 40_000) == ("tiny/v1", True)
    assert ask("list") == []
    assert not (copied / "merges").exists()
    assert "no merge 'tiny'" in refused("delete", "tiny")
    blobs = keys(copied)
    assert sorted(line["key"] for line in ask(*GC, "--delete")["garbage"]) == blobs
    assert keys(copied) == []
    with Catalog.open(f"sqlite:///{copied}/catalog.db") as catalog:
        assert catalog.artifacts.all() == []
        assert catalog.merges.reserve("tiny") == 2


def test_a_removal_that_was_broken_off_is_finished_by_another(copied: Path) -> None:
    open_store(copied).delete("merges/tiny/v1/manifest.json")
    assert ask("delete", "tiny")["merge"] == "tiny/v1"
    assert ask("list") == []
    assert [key for key in keys(copied) if key.startswith("merges/")] == []


def test_a_merge_is_removed_by_its_folder_too(copied: Path) -> None:
    assert ask("delete", copied / "merges/tiny/v1")["merge"] == "tiny/v1"
    assert ask("list") == []


# The database and the doctor


def test_db_upgrade_brings_an_old_catalog_up_and_says_so(copied: Path) -> None:
    with closing(sqlite3.connect(copied / "catalog.db")) as database, database:
        database.executescript(TO_0001)
    assert "run `tintray db upgrade`" in refused("list")
    assert "tintray db upgrade" in ask("db", "check", code=1)["problems"][0]
    change = ask("db", "upgrade")
    assert (change["before"], change["after"]) == ("0001", REVISIONS[-1])
    assert "already" in say("db", "upgrade")
    assert [line["name"] for line in ask("list")] == ["tiny"]


def test_db_check_finds_damage_newer_schemas_and_idle_jobs(copied: Path) -> None:
    with Catalog.open(f"sqlite:///{copied}/catalog.db") as catalog:
        idle, busy, over = (
            catalog.jobs.create(name, {}, "file:///store") for name in ("idle", "busy", "over")
        )
        catalog.leases.acquire(busy, "me", 60)
        catalog.jobs.transition(over, JobState.QUEUED, JobState.FAILED, "no memory")
    report = ask("db", "check")
    assert (report["problems"], report["idle_jobs"], report["rows"]["jobs"]) == ([], [idle], 3)
    for statement, problem in (
        ("ALTER TABLE jobs ADD COLUMN mood TEXT", "not those of its schema"),
        ("UPDATE tintray_schema SET version_num = '9999'", "upgrade tintray"),
    ):
        with closing(sqlite3.connect(copied / "catalog.db")) as database, database:
            database.execute(statement)
        assert problem in ask("db", "check", code=1)["problems"][0]
    assert "newer" in refused("db", "upgrade")
    assert "newer" in refused("list")


@pytest.mark.usefixtures("place")
def test_db_upgrade_creates_a_catalog_and_check_does_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/catalog.db"
    assert "no catalog" in refused("db", "check", "--catalog", url)
    assert not (tmp_path / "new").exists()
    assert ask("db", "upgrade", "--catalog", url)["before"] is None
    assert ask("db", "check", "--catalog", url)["problems"] == []


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray takes seconds, and is looked at in one test."""
    monkeypatch.setattr(doctor, "_ray", lambda: "not looked at")


def wrong(*words: object) -> dict[str, Any]:
    """The checks that the doctor says failed, by their names."""
    checks = ask("doctor", *words, code=1)["checks"]
    return {check["name"]: check for check in checks if not check["ok"]}


@pytest.mark.usefixtures("place")
def test_the_doctor_finds_all_well_and_changes_nothing(tmp_path: Path) -> None:
    found = ask("doctor")
    checks = {check["name"]: check for check in found["checks"]}
    assert found["healthy"], found
    assert {"python", "torch", "ray", "store", "database"} <= checks.keys()
    assert "CPUs" in checks["ray"]["found"]
    failed = wrong("--store", tmp_path / "new", "--address", "127.0.0.1:1")
    assert failed.keys() == {"ray"}
    assert "check the address" in failed["ray"]["fix"]
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("without_ray", "place")
def test_the_doctor_names_what_is_wrong_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "catalog.db").write_text("this is no database" * 100)
    monkeypatch.setenv("AWS_PROFILE", "team")
    url = f"sqlite:///{tmp_path}/catalog.db"
    failed = wrong("--store", "s3://bucket/x", "--catalog", url)
    assert failed.keys() == {"store", "database"}
    assert failed["store"]["fix"] == "correct AWS_PROFILE"
    assert "name another file" in failed["database"]["fix"]
    monkeypatch.setattr(doctor, "requires", lambda _: ["torch>=99", "no-such-package", "rich"])
    assert [(check.ok, check.fix) for check in doctor.versions()][1:] == [
        (False, "pip install 'torch>=99'"),
        (False, "pip install 'no-such-package'"),
        (True, None),
    ]


@pytest.mark.usefixtures("without_ray", "place")
def test_the_doctor_sees_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert [*wrong("--store", tmp_path / "file" / "store")] == ["store", "database"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
