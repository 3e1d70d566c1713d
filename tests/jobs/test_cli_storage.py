"""The commands that look after a store and a catalog, on a real job in a folder and SQLite."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from tests.tiny_zoo import TinyZoo
from tintray.jobs import api
from tintray.jobs.cli import main
from tintray.jobs.upkeep import doctor
from tintray.seals import unseal
from tintray.storage.artifacts.blobs import BlobRef, blob_key, put_blob
from tintray.storage.artifacts.publish import list_merges
from tintray.storage.artifacts.records import seal
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.artifacts import KnownArtifact
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.migrations import REVISIONS
from tintray.storage.catalog.schema import alembic_config
from tintray.storage.catalog.states import JobState

Answer = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one merge, ``tiny/v1``, which tests leave as it is."""
    store = tmp_path_factory.mktemp("upkeep") / "store"
    api.run(tiny.spec(store))
    return store


@pytest.fixture
def ask(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Answer:
    """Call a command on that store; returns its JSON document, and checks its exit code."""
    monkeypatch.setenv("TINTRAY_STORE", str(place))
    monkeypatch.delenv("TINTRAY_CATALOG", raising=False)

    def call(*args: str, code: int = 0, text: bool = False) -> Any:
        capfd.readouterr()
        found = main([*args] if text or code == 2 else [*args, "--json"])
        out, err = capfd.readouterr()
        assert found == code, err + out
        if code == 2:
            assert out == ""
            return err
        return out if text else json.loads(out)

    return call


@pytest.fixture
def copied(ask: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of one's own with a copy of the merge, which the commands then work on."""
    ask("copy", "tiny", str(tmp_path / "copy"))
    monkeypatch.setenv("TINTRAY_STORE", str(tmp_path / "copy"))
    return tmp_path / "copy"


def keys(store: Path) -> list[str]:
    return [entry.key for entry in open_store(store).list() if not entry.key.startswith("catalog")]


# Artifacts


def test_ls_tells_what_there_is_and_who_needs_it(ask: Answer, place: Path) -> None:
    lines = ask("artifacts", "ls")
    assert all(line["in_store"] and line["needed_by"] == ["merge tiny/v1"] for line in lines)
    assert {line["kind"] for line in lines} >= {"task-vector", "self-labels", "tint", "backbone"}
    assert sum(line["kind"] == "task-vector" for line in lines) == 4
    assert [line["kind"] for line in ask("artifacts", "ls", "--kind", "base")] == ["base"]
    assert "merge tiny/v1" in ask("artifacts", "ls", text=True)
    assert "did you mean 'tint'?" in ask("artifacts", "ls", "--kind", "tnt", code=2)


def test_ls_shows_what_only_the_store_or_only_the_catalog_knows(ask: Answer, copied: Path) -> None:
    unknown = put_blob(open_store(copied), b"unknown").sha256
    gone = next(line for line in ask("artifacts", "ls") if line["kind"] == "tint")["sha256"]
    open_store(copied).delete(blob_key(gone))
    found = {line["sha256"]: line for line in ask("artifacts", "ls")}
    assert (found[unknown]["kind"], found[unknown]["needed_by"]) == ("unknown", [])
    assert [sha256 for sha256, line in found.items() if not line["in_store"]] == [gone]
    assert "(not in the store)" in ask("artifacts", "ls", text=True)


def test_verify_names_what_is_damaged_and_exits_with_1(ask: Answer, copied: Path) -> None:
    assert ask("artifacts", "verify")["damaged"] == []
    assert "all as they were written" in ask("artifacts", "verify", "tiny", text=True)
    key = next(key for key in keys(copied) if key.startswith("blobs/"))
    store = open_store(copied)
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data), overwrite=True)
    for args in (("artifacts", "verify"), ("artifacts", "verify", "tiny/v1")):
        damaged = ask(*args, code=1)["damaged"]
        assert [line["key"] for line in damaged] == [key]
        assert damaged[0]["needed_by"] == ["merge tiny/v1"]
    assert key in ask("artifacts", "verify", code=1, text=True)


def test_an_altered_manifest_is_not_opened(ask: Answer, copied: Path) -> None:
    path = copied / "merges/tiny/v1/manifest.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"rounds": 4', b'"rounds": 5'))
    damaged = ask("artifacts", "verify", code=1)["damaged"]
    assert [line["key"] for line in damaged] == ["merges/tiny/v1/manifest.json"]
    assert main(["show", "tiny"]) == 1


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "configs/two/../../../escaped"])
def test_a_manifest_that_leads_out_of_its_merge_is_refused(
    ask: Answer, copied: Path, tmp_path: Path, name: str
) -> None:
    path = copied / "merges/tiny/v1/manifest.json"
    document = unseal(path.read_bytes(), "it")
    document["files"][name] = document["files"]["configs/two/config.json"]
    path.chmod(0o644)
    path.write_bytes(seal(document, "it"))
    for args in (
        ("show", "tiny"),
        ("export", "tiny", "--task", "two", str(tmp_path / "out" / "two")),
        ("copy", "tiny", str(tmp_path / "out" / "store")),
    ):
        assert "outside of the merge" in ask(*args, code=2)
    assert not (tmp_path / "out" / "two").exists()
    assert list(tmp_path.rglob("escaped")) == []


def test_a_pin_keeps_an_artifact(ask: Answer, copied: Path) -> None:
    sha256 = put_blob(open_store(copied), b"precious").sha256
    with Catalog.open(f"sqlite:///{copied}/catalog.db") as catalog:
        catalog.artifacts.record([KnownArtifact(BlobRef(sha256, 8), "checkpoint")])
    assert ask("artifacts", "pin", sha256[:12])["needed_by"] == ["pin"]
    assert ask("gc", "--older-than", "0")["garbage"] == []
    assert "gc may take it" in ask("artifacts", "pin", sha256, "--remove", text=True)
    assert [line["key"] for line in ask("gc", "--older-than", "0")["garbage"]] == [blob_key(sha256)]
    assert "six or more digits" in ask("artifacts", "pin", "0", code=2)
    assert "artifacts ls" in ask("artifacts", "pin", "f" * 64, code=2)


# Garbage


def test_gc_deletes_only_when_told_to_and_only_what_nobody_needs(
    ask: Answer, copied: Path, tmp_path: Path
) -> None:
    before = keys(copied)
    garbage = put_blob(open_store(copied), b"garbage").sha256
    assert ask("gc")["young"] == 1
    listed = ask("gc", "--older-than", "0s")
    assert (listed["dry_run"], len(listed["garbage"])) == (True, 1)
    assert "--delete does it" in ask("gc", "--older-than", "0", text=True)
    assert blob_key(garbage) in keys(copied)
    done = ask("gc", "--older-than", "0", "--delete")
    assert done["garbage"] == listed["garbage"]
    assert (done["dry_run"], done["garbage_bytes"]) == (False, len(b"garbage"))
    assert keys(copied) == before
    assert ask("artifacts", "verify")["damaged"] == []
    ask("export", "tiny", "--task", "two", str(tmp_path / "two"), text=True)


def test_gc_spares_what_a_job_has_used_until_it_is_over(
    ask: Answer, tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was killed while fitting may be continued; one that failed is over."""
    from tintray.jobs.events import RoundDone

    store = tmp_path / "store"
    monkeypatch.setenv("TINTRAY_STORE", str(store))
    during: list[Any] = []

    def watch(event: object) -> None:
        if isinstance(event, RoundDone) and event.round == 2:
            during.append(ask("gc", "--older-than", "0", "--delete"))
            during.append(ask("artifacts", "ls"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.run(tiny.spec(store), on_event=watch)
    assert during[0]["garbage"] == []
    assert all(line["needed_by"][0].startswith("job tiny-") for line in during[1])
    freed = ask("gc", "--older-than", "0", "--delete")
    assert {line["reason"] for line in freed["garbage"]} == {
        "needed by no merge, job or pin",
        "a cached result, needed by no merge, job or pin",
    }
    assert keys(store) == []
    api.run(tiny.spec(store))  # what was swept is computed again
    assert ask("artifacts", "verify")["damaged"] == []


def test_gc_refuses_the_catalog_of_another_store(ask: Answer, place: Path, tmp_path: Path) -> None:
    put_blob(open_store(tmp_path / "foreign"), b"precious")
    said = ask(
        *("gc", "--store", str(tmp_path / "foreign")),
        *("--catalog", f"sqlite:///{place}/catalog.db"),
        code=2,
    )
    assert "knows no job and no merge of the store" in said


# Merges


def test_a_copy_is_the_same_merge_in_another_store(ask: Answer, place: Path, copied: Path) -> None:
    names = [path.relative_to(place) for path in (place / "merges").rglob("*") if path.is_file()]
    assert len(names) == 15
    for name in names:
        assert (copied / name).read_bytes() == (place / name).read_bytes(), name
    listed = ask("list")
    assert [(line["name"], line["version"], line["tasks"]) for line in listed] == [
        ("tiny", "v1", 4)
    ]
    assert listed[0]["url"] == (copied / "merges/tiny/v1").as_uri()
    again = ask("copy", "tiny", str(copied), "--store", str(place))
    assert again["url"] == listed[0]["url"]
    assert "already" in ask("copy", "tiny", str(copied), code=2)
    assert "DEST" in ask("copy", "tiny", "gs://x", code=2)


def test_a_damaged_merge_is_put_right_by_copying_it_again(
    ask: Answer, copied: Path, place: Path
) -> None:
    path = copied / "merges/tiny/v1/backbone.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))  # the blob is the same file
    damaged = [line["key"] for line in ask("artifacts", "verify", code=1)["damaged"]]
    assert len(damaged) == 1
    ask("copy", "tiny", str(copied), "--store", str(place))
    assert ask("artifacts", "verify")["damaged"] == []
    (copied / damaged[0]).unlink()
    shutil.rmtree(copied / "merges/tiny/v1")
    assert len(ask("artifacts", "verify", code=1)["damaged"]) == 2
    ask("copy", "tiny", str(copied), "--store", str(place))
    assert ask("artifacts", "verify")["damaged"] == []
    assert len(ask("list")) == 1


def test_a_copy_of_a_damaged_merge_is_not_published(
    ask: Answer, copied: Path, tmp_path: Path
) -> None:
    path = copied / "merges/tiny/v1/tints/two.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert main(["copy", "tiny", str(tmp_path / "second")]) == 1
    assert list_merges(open_store(tmp_path / "second")) == []


def test_a_removed_merge_is_gone_and_its_version_with_it(ask: Answer, copied: Path) -> None:
    removed = ask("delete", "tiny")
    assert (removed["merge"], removed["unneeded_bytes"] > 40_000) == ("tiny/v1", True)
    assert ask("list") == []
    assert not (copied / "merges").exists()
    assert "no merge 'tiny'" in ask("delete", "tiny", code=2)
    blobs = keys(copied)
    swept = ask("gc", "--older-than", "0", "--delete")["garbage"]
    assert sorted(line["key"] for line in swept) == blobs
    assert keys(copied) == []
    with Catalog.open(f"sqlite:///{copied}/catalog.db") as catalog:
        assert catalog.artifacts.all() == []
        assert catalog.merges.reserve("tiny") == 2


def test_a_removal_that_was_broken_off_is_finished_by_another(ask: Answer, copied: Path) -> None:
    open_store(copied).delete("merges/tiny/v1/manifest.json")
    assert ask("delete", "tiny")["merge"] == "tiny/v1"
    assert ask("list") == []
    assert [key for key in keys(copied) if key.startswith("merges/")] == []


def test_a_merge_is_removed_by_its_folder_too(ask: Answer, copied: Path) -> None:
    assert ask("delete", str(copied / "merges/tiny/v1"))["merge"] == "tiny/v1"
    assert ask("list") == []


# The database and the doctor


def test_db_upgrade_brings_an_old_catalog_up_and_says_so(ask: Answer, copied: Path) -> None:
    config = alembic_config()
    with sa.create_engine(f"sqlite:///{copied}/catalog.db").begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    assert "run `tintray db upgrade`" in ask("list", code=2)
    assert "tintray db upgrade" in ask("db", "check", code=1)["problems"][0]
    change = ask("db", "upgrade")
    assert (change["before"], change["after"]) == ("0001", REVISIONS[-1])
    assert "already" in ask("db", "upgrade", text=True)
    assert [line["name"] for line in ask("list")] == ["tiny"]


def test_db_check_finds_damage_newer_schemas_and_idle_jobs(ask: Answer, copied: Path) -> None:
    url = f"sqlite:///{copied}/catalog.db"
    with Catalog.open(url) as catalog:
        idle = catalog.jobs.create("idle", {}, "file:///store")
        busy = catalog.jobs.create("busy", {}, "file:///store")
        over = catalog.jobs.create("over", {}, "file:///store")
        catalog.leases.acquire(busy, "me", 60)
        catalog.jobs.transition(over, JobState.QUEUED, JobState.FAILED, "no memory")
    report = ask("db", "check")
    assert (report["problems"], report["idle_jobs"], report["rows"]["jobs"]) == ([], [idle], 3)
    with closing(sqlite3.connect(copied / "catalog.db")) as database, database:
        database.execute("ALTER TABLE jobs ADD COLUMN mood TEXT")
    assert "not those of its schema" in ask("db", "check", code=1)["problems"][0]
    with closing(sqlite3.connect(copied / "catalog.db")) as database, database:
        database.execute("UPDATE tintray_schema SET version_num = '9999'")
    assert "upgrade tintray" in ask("db", "check", code=1)["problems"][0]
    assert "newer" in ask("db", "upgrade", code=2)
    assert "newer" in ask("list", code=2)


def test_db_upgrade_creates_a_catalog_and_check_does_not(ask: Answer, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/catalog.db"
    assert "no catalog" in ask("db", "check", "--catalog", url, code=2)
    assert not (tmp_path / "new").exists()
    assert ask("db", "upgrade", "--catalog", url)["before"] is None
    assert ask("db", "check", "--catalog", url)["problems"] == []


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray takes seconds, and is looked at in one test."""
    monkeypatch.setattr(doctor, "_ray", lambda: "not looked at")


def test_the_doctor_finds_all_well_and_changes_nothing(ask: Answer, tmp_path: Path) -> None:
    found = ask("doctor")
    checks = {check["name"]: check for check in found["checks"]}
    assert found["healthy"], found
    assert {"python", "torch", "ray", "store", "database"} <= checks.keys()
    assert "CPUs" in checks["ray"]["found"]
    place = tmp_path / "new"
    found = ask("doctor", "--store", str(place), "--address", "127.0.0.1:1", code=1)
    assert [check["name"] for check in found["checks"] if not check["ok"]] == ["ray"]
    assert "check the address" in found["checks"][-1]["fix"]
    assert not place.exists()


@pytest.mark.usefixtures("without_ray")
def test_the_doctor_names_what_is_wrong_with_its_fix(
    ask: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "catalog.db").write_text("this is no database" * 100)
    monkeypatch.setenv("AWS_PROFILE", "team")
    found = ask(
        *("doctor", "--store", "s3://bucket/x", "--catalog", f"sqlite:///{tmp_path}/catalog.db"),
        code=1,
    )
    wrong = {check["name"]: check for check in found["checks"] if not check["ok"]}
    assert wrong.keys() == {"store", "database"}
    assert wrong["store"]["fix"] == "correct AWS_PROFILE"
    assert "name another file" in wrong["database"]["fix"]
    monkeypatch.setattr(doctor, "requires", lambda _: ["torch>=99", "no-such-package", "rich"])
    checks = {check.name: check for check in doctor.versions()}
    assert [(check.ok, check.fix) for check in checks.values()][1:] == [
        (False, "pip install 'torch>=99'"),
        (False, "pip install 'no-such-package'"),
        (True, None),
    ]


@pytest.mark.usefixtures("without_ray")
def test_the_doctor_sees_a_place_that_cannot_be_made(ask: Answer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = ask("doctor", "--store", str(tmp_path / "file" / "store"), code=1)
    wrong = [check["name"] for check in found["checks"] if not check["ok"]]
    assert wrong == ["store", "database"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
