"""Who made a merge: signatures go where it goes, and what has to be signed is refused without."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.answers import COMMANDS, call
from tests.conftest import Published
from tests.tiny_zoo import TinyZoo
from tintray.errors import IntegrityError, SignatureError, SpecError
from tintray.jobs.config.signing import trusted_keys
from tintray.jobs.engine.finding import reopen_merge
from tintray.jobs.runs.evaluate import Evaluator
from tintray.jobs.runs.evaluate_data import DataEvaluator
from tintray.published.manifest import MANIFEST
from tintray.published.signatures import SIGNATURES, digest
from tintray.seals import seal, unseal


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with keys of alice, bob and mallory; alice and bob are trusted, alice signs."""
    for name in ("alice", "bob", "mallory"):
        assert call("new-key", tmp_path / name, "--name", name).code == 0
    lines = [(tmp_path / f"{name}.pub").read_text() for name in ("alice", "bob")]
    (tmp_path / "trusted").write_text("# those whose merges we use\n\n" + "".join(lines))
    monkeypatch.setenv("TINTRAY_TRUST", str(tmp_path / "trusted"))
    monkeypatch.setenv("TINTRAY_SIGNING_KEY", str(tmp_path / "alice"))
    # what --require-signed sets for the process that it is given to
    monkeypatch.setenv("TINTRAY_REQUIRE_SIGNED", "")
    return tmp_path


@pytest.fixture
def folder(published: Published, keys: Path) -> Path:
    """The tiny merge, exported and not signed yet."""
    assert call("export", published.folder, keys / "merge").code == 0
    return keys / "merge"


@pytest.fixture
def stored(folder: Path) -> str:
    """The same in a store of its own, whose catalog knows it."""
    copied: str = call("copy", folder, folder.parent / "store", "--json").document["url"]
    return copied


def signed_by(merge: object) -> list[tuple[str | None, bool]]:
    lines = call("show", merge, "--json").document["signatures"]
    return [(line["name"], line["holds"]) for line in lines]


def test_a_key_is_for_its_owner_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    made = call("new-key", tmp_path / "key", "--name", "alice in ops", "--json").document
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key.pub").read_text().strip() == made["key"]
    assert made["key"].endswith(" alice in ops")
    before = (tmp_path / "key").read_bytes()
    assert "is there already" in call("new-key", tmp_path / "key").sentence
    (tmp_path / "key.pub").unlink()
    assert "is there already" in call("new-key", tmp_path / "key").sentence
    assert (tmp_path / "key").read_bytes() == before


def test_a_signature_says_who_made_a_merge_and_changes_none_of_it(stored: str, keys: Path) -> None:
    store = keys / "store"
    files = [path for path in (store / "merges").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(SignatureError, match="is not signed, expected a signature of alice, bob"):
        tintray.load(stored, require_signed=True)
    assert call("sign", stored, "--dry-run").code == 0 and signed_by(stored) == []
    said = call("sign", "tiny", "--store", store, "--json").document
    assert (said["merge"], said["signatures"], said["already"]) == ("tiny/v1", 1, False)
    assert call("sign", stored, "--json").document["already"]
    merge = tintray.load(stored, require_signed=True)
    assert merge.sign(keys / "bob").signatures == 2
    merge.sign(keys / "mallory")
    assert signed_by(stored) == [("alice", True), ("bob", True), (None, True)]
    assert [signer.name for signer in merge.signers()] == ["alice", "bob", None]
    assert "signed by  alice, bob, SHA256:" in call("show", stored).out
    assert all(path.read_bytes() == content for path, content in before.items())
    assert call("artifacts", "verify", "--store", store, "--json").document["damaged"] == []
    assert call("gc", "--store", store, "--older-than", "0", "--json").document["garbage"] == []


def entry_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["signatures"][0]
    return found


def removed(folder: Path, path: Path) -> None:
    path.unlink()


def truncated(folder: Path, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def endless(folder: Path, path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" " * 2**16)


def bent(folder: Path, path: Path) -> None:
    entry = entry_of(path)
    signature = bytearray(base64.b64decode(entry["signature"]))
    signature[7] ^= 1
    entry["signature"] = base64.b64encode(signature).decode()
    path.write_text(json.dumps({"signatures": [entry]}))


def of_another_merge(folder: Path, path: Path) -> None:
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    change_manifest(other, path)
    (other / SIGNATURES).unlink()
    assert call("sign", other).code == 0
    shutil.copy(other / SIGNATURES, path)


def change_manifest(folder: Path, path: Path) -> None:
    """As anybody can who may write there: the seal is made anew."""
    document = unseal((folder / MANIFEST).read_bytes(), "it") | {"notices": ["trust me"]}
    (folder / MANIFEST).write_bytes(seal(document, MANIFEST))


def by_another_key(folder: Path, path: Path) -> None:
    path.unlink()
    assert call("sign", folder, "--key", folder.parent / "mallory").code == 0


def linked_elsewhere(folder: Path, path: Path) -> None:
    path.unlink()
    path.symlink_to(folder.parent / "alice")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (removed, "is not signed, expected a signature of alice, bob"),
        (truncated, "signatures.json is truncated or altered; remove it or fetch it again"),
        (endless, "signatures.json"),
        (bent, "the signature of alice does not hold for this merge"),
        (of_another_merge, "the signature of alice does not hold for this merge"),
        (change_manifest, "the signature of alice does not hold for this merge"),
        (by_another_key, "which is not trusted here; expected a signature of alice, bob"),
        (linked_elsewhere, "outside of its folder"),
    ],
)
def test_what_does_not_show_who_made_it_is_refused(
    spoil: Callable[[Path, Path], None], said: str, folder: Path
) -> None:
    assert call("sign", folder).code == 0
    tintray.load(folder, require_signed=True)
    spoil(folder, folder / SIGNATURES)
    for words in (("export", folder, folder.parent / "out"), ("pull", folder, folder.parent / "o")):
        found = call(*words, "--require-signed")
        assert said in found.sentence
        assert "PRIVATE KEY" not in found.err
    assert not (folder.parent / "out").exists() and not (folder.parent / "o").exists()
    with pytest.raises(tintray.InputError, match=said.replace(".", r"\.")):
        tintray.load(folder, require_signed=True)


TAKE = {
    "add-task": ("{task}",),
    "remove-task": ("two",),
    "refresh-task": ("two",),
    "serve": ("--replicas", "0", "--port", "0"),
    "check": ("--min-kept", "0"),
    "rollback": (),
    "add-router": (),
    "export": ("{out}",),
}


def test_every_command_that_can_require_signatures_is_tried() -> None:
    """``pull`` is tried above."""
    offering = {
        name.removesuffix(" start")
        for name, found in COMMANDS.items()
        if any(option.name == "require_signed" for option in found.params)
    }
    assert offering == {*TAKE, "pull"}


@pytest.mark.parametrize("command", TAKE)
def test_commands_refuse_a_merge_that_nobody_has_signed(
    command: str, stored: str, tiny: TinyZoo, keys: Path
) -> None:
    task = keys / "more.yaml"
    pool = {"path": str(tiny.folder / "two.npz")}
    task.write_text(json.dumps({"name": "more", "expert": str(tiny.folder / "two"), "pool": pool}))
    given = {"task": str(task), "out": str(keys / "out")}
    words = [word.format(**given) for word in TAKE[command]]
    found = call(command, stored, *words, "--require-signed")
    assert "is not signed" in found.sentence
    assert not (keys / "out").exists()
    assert call("history", "tiny", "--store", keys / "store", "--json").document[0]["tasks"] == 4


def test_signatures_go_where_the_merge_goes(
    stored: str, keys: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"{s3_url}/shared"
    assert call("push", stored, bucket).code == 0  # before anybody has signed it
    assert call("push", stored, keys / "pushed").code == 0
    assert call("sign", stored).code == 0
    assert call("push", stored, bucket, "--json").document["already"]
    assert call("push", stored, keys / "pushed", "--json").document["already"]
    assert call("sign", stored, "--key", keys / "bob").code == 0
    both = [("alice", True), ("bob", True)]
    assert call("export", stored, keys / "exported").code == 0
    copied = call("copy", stored, s3_url, "--json").document["url"]
    assert signed_by(copied) == signed_by(keys / "exported") == both
    monkeypatch.setenv("TINTRAY_REQUIRE_SIGNED", "yes")
    for place in (bucket, keys / "pushed"):
        assert call("pull", place, keys / "pulled").code == 0
        assert signed_by(keys / "pulled") == [("alice", True)]
        shutil.rmtree(keys / "pulled")
    assert call("sign", copied, "--key", keys / "mallory").code == 0
    assert signed_by(copied) == [*both, (None, True)]
    back = call("copy", copied, keys / "back", "--json").document["url"]
    assert signed_by(back) == [*both, (None, True)]


def test_a_setting_makes_it_the_rule(
    tiny: TinyZoo, stored: str, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = keys / "config.toml"
    config.write_text('trust = "trusted"\nrequire_signed = true\n')
    monkeypatch.setenv("TINTRAY_CONFIG", str(config))
    monkeypatch.delenv("TINTRAY_TRUST")
    assert [key.name for key in trusted_keys()] == ["alice", "bob"]
    for words in (("eval", stored), ("export", stored, keys / "out"), ("copy", stored, keys / "x")):
        assert "is not signed" in call(*words).sentence
    with pytest.raises(SignatureError):
        tintray.load(stored)
    assert tintray.load(stored, require_signed=False).ref == "tiny/v1"
    assert call("show", stored).code == 0  # which is how one finds out
    spec = tiny.spec(keys / "own", tasks=("two", "three"), fit={"rounds": 1})
    made = tintray.run(spec)  # nobody can have signed what is just being made
    made.sign()
    assert len(tintray.load(made.url).remove(["two"]).tasks) == 1
    config.write_text('require_signed = "perhaps"\n')
    with pytest.raises(SpecError, match="expected true or false, found 'perhaps'"):
        tintray.load(stored)
    config.write_text("require_signed = true\n")
    with pytest.raises(SpecError, match="no key is trusted here; set `trust`"):
        tintray.load(stored)


def test_who_opens_it_again_refuses_another(folder: Path) -> None:
    """As replicas and workers do, in processes of their own."""
    known = digest(tintray.load(folder).manifest)
    assert reopen_merge(str(folder), known).manifest.ref == "tiny/v1"
    change_manifest(folder, folder / SIGNATURES)
    for opened in (reopen_merge, DataEvaluator, partial(Evaluator, store_url=str(folder.parent))):
        with pytest.raises(IntegrityError, match="its manifest was replaced"):
            opened(str(folder), known)


@pytest.mark.parametrize("form", ["file", "variable", "option"])
def test_keys_of_other_programs_sign_too(
    form: str, folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keygen, path = shutil.which("ssh-keygen"), keys / "id_ed25519"
    if keygen is None:
        pytest.skip("ssh-keygen is not installed")
    made = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "carol", "-f", str(path)]
    subprocess.run(made, check=True)
    monkeypatch.setenv("TINTRAY_SIGNING_KEY", path.read_text() if form == "variable" else str(path))
    monkeypatch.setenv("TINTRAY_TRUST", path.with_suffix(".pub").read_text())
    option = ("--key", path) if form == "option" else ()
    assert call("sign", folder, *option).code == 0
    assert signed_by(folder) == [("carol", True)]
    listed = subprocess.run([keygen, "-lf", f"{path}.pub"], capture_output=True, text=True)
    document = call("show", folder, "--json").document
    assert document["signatures"][0]["key"] == listed.stdout.split()[1]


@pytest.mark.parametrize("content", [b"", b"my secret", b"-----BEGIN PRIVATE KEY-----\nsecret\n"])
def test_what_is_no_key_is_not_quoted(
    content: bytes, folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (keys / "key").write_bytes(content)
    monkeypatch.delenv("TINTRAY_SIGNING_KEY")
    assert "no key to sign with" in call("sign", folder).sentence
    assert "secret" not in call("sign", folder, "--key", keys / "key").sentence
    monkeypatch.setenv("TINTRAY_SIGNING_KEY", content.decode() or "-")
    assert "secret" not in call("sign", folder).sentence
    monkeypatch.setenv("TINTRAY_TRUST", str(keys / "alice.pub"))
    (keys / "alice.pub").write_text("ssh-ed25519 AAAA alice\n")
    with pytest.raises(SpecError, match="line 1: expected a public key"):
        tintray.load(folder, require_signed=True)
