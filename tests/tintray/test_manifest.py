"""Manifests from anybody: each field is looked at once, and whatever is wrong is one sentence."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from tests.conftest import Published
from tests.tiny_models import tokenizer
from tintray.errors import InputError, IntegrityError, NotFoundError, TintrayError
from tintray.jobs.cli.tables import print_summary, write_json
from tintray.jobs.display.terminal import open_console
from tintray.jobs.engine.finding import load_merge
from tintray.jobs.runs.summaries import summary
from tintray.published import files
from tintray.published.card import model_card
from tintray.published.manifest import Manifest
from tintray.published.merge import Merge, open_folder
from tintray.seals import unseal
from tintray.storage.artifacts.records import seal

GONE = object()
VALUES: list[Any] = [
    *(GONE, None, True, -1, 0, 3, 2**70, 1.5, float("nan"), float("inf"), "", "x", "\x1b[2J\n"),
    *("../x", "/etc/passwd", "C:\\x", "\ud800", "a\0", "ü" * 5000, [], ["x"], [[]], {}, {"x": {}}),
]


@pytest.fixture(scope="module")
def document(published: Published) -> dict[str, Any]:
    return unseal((published.folder / "manifest.json").read_bytes(), "the manifest")


@pytest.fixture(scope="module")
def folder(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merge's folder, carried out of its store and writable."""
    target = tmp_path_factory.mktemp("manifests") / "merge"
    shutil.copytree(published.folder, target, copy_function=shutil.copyfile)
    return target


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, but for what is below the job: that is read as a job file."""
    if path:
        yield path
    if path[:1] == ("job",) and len(path) == 2 and path[1] != "merge":
        return
    if not isinstance(value, dict | list):
        return
    for key, below in value.items() if isinstance(value, dict) else enumerate(value[:1]):
        yield from places(below, (*path, key))


def changed(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(document)
    at: Any = found
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    if value is GONE:
        del at[path[-1]]
    return found


def used(document: Any) -> None:
    """All that commands read of a manifest alone."""
    merge = Merge(Manifest.read(document, "somewhere"), Path, "somewhere")
    found = summary(merge.manifest, merge.url)
    print_summary(found, open_console(io.StringIO()))
    write_json(found, io.StringIO())
    for task in (None, *merge.tasks):
        model_card(merge.manifest, task)


def test_what_is_published_is_a_manifest(document: dict[str, Any]) -> None:
    manifest = Manifest.read(document, "here")
    assert seal(manifest.to_json(), "it") == seal(document, "it")
    assert manifest.changed(files=manifest.files) == manifest
    used(document)


def test_a_manifest_is_written_as_it_was_read(document: dict[str, Any]) -> None:
    """Fields of a later version, their order, numbers without a point, and what is not there."""
    later = {"new": [1, {"a": None}], **document, "peak_memory_mib": 3}
    later["tasks"] = [dict(reversed(task.items())) | {"more": {}} for task in document["tasks"]]
    for absent in ("notices", "correction_from", "skipped"):
        del later[absent]
    assert json.dumps(Manifest.read(later, "here").to_json()) == json.dumps(later)
    child = Manifest.read(later, "here").unpublished(parent="tiny/v1", notices=["x" * 9999])
    expected = {k: v for k, v in later.items() if k not in ("name", "version", "files")}
    expected |= {"parent": "tiny/v1", "notices": ["x" * 9999]}
    assert json.dumps(child.to_json()) == json.dumps(expected)


def test_any_field_that_is_wrong_or_missing_ends_in_a_sentence(document: dict[str, Any]) -> None:
    known = list(places(document))
    assert len(known) > 80
    refused = 0
    for number, path in enumerate(known):
        for value in VALUES[number % 3 :: 3]:
            damaged = changed(document, path, value)
            try:
                used(damaged)
            except TintrayError as error:
                assert str(error).isprintable()
                refused += 1
    assert refused > 4 * len(known)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((value, "is not a merge") for value in (None, True, 3, "x", [], {}, [[]])),
        *(({"format": value}, "is not a merge") for value in ([], "other", "tintray-merge")),
        ({"format": "tintray-merge", "format_version": 99}, "format 99.*upgrade"),
    ],
)
def test_what_is_no_manifest_at_all_is_refused(value: Any, words: str) -> None:
    with pytest.raises(NotFoundError, match=words):
        Manifest.read(value, "somewhere")


ESCAPES = [
    *("../x", "a/../../x", "/etc/x", "a//b", "./a", "a/.", "", "a/", "\\\\host\\x", "a\\b", "C:/x"),
    *("c:x", "a:stream", "a\n", "a\x1b[2J", "a\0b", "\u202ea", "a\x85", "con", "NUL.txt"),
    *("a ", " a", "a.", "manifest.json", "Manifest.JSON", "x" * 256, "/".join(["y" * 99] * 12)),
    *("tints/aux", "\ud800", "a?b", "a|b"),
]
TWINS = [(["x", "X"], "would make one"), (["x", "x/y"], "a file and a folder of one name")]


@pytest.mark.parametrize(
    ("names", "problem"), [*(([name], r"files\.") for name in ESCAPES), *TWINS]
)
def test_files_that_no_system_or_not_every_one_keeps_apart_are_refused(
    document: dict[str, Any], names: list[str], problem: str
) -> None:
    one = document["files"]["backbone.safetensors"]
    listed = {**document["files"], **dict.fromkeys(names, one)}
    with pytest.raises(InputError, match=problem):
        Manifest.read({**document, "files": listed}, "somewhere")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=60), at=st.floats(0, 1), cut=st.booleans())
def test_bytes_that_were_changed_are_never_a_merge(
    folder: Path, document: dict[str, Any], data: bytes, at: float, cut: bool
) -> None:
    text = seal(document, "manifest.json")
    place = int(at * len(text))
    damaged = text[:place] + data + (b"" if cut else text[place + len(data) :])
    path = folder / "manifest.json"
    path.write_bytes(damaged)
    try:
        load_merge(str(folder))
    except TintrayError as error:
        assert str(error).isprintable()
    else:
        assert damaged == text
    finally:
        path.write_bytes(text)


RECORDS = [b"", b"[]", b"{", b"[" * 200_000, b'{"a":' * 200_000, b"\xff", b"\x00", b"null"]


@pytest.mark.parametrize("text", [*RECORDS, b"9" * 10_000])
def test_a_record_that_is_none_ends_in_a_sentence(text: bytes) -> None:
    for data in (text, b"{" + text, text + b"\n}\n"):
        with pytest.raises(IntegrityError, match="truncated or altered"):
            unseal(data, "a record")


def _uses(folder: Path, name: str) -> list[Callable[[], object]]:
    merge = load_merge(str(folder))
    task = merge.tasks[0]
    if name == "coefficients.safetensors":
        return [lambda: merge.coefficients]
    uses: list[Callable[[], object]] = [lambda: merge.for_task(task)]
    if name.startswith("configs"):
        uses.append(lambda: merge.export(task, folder.parent / "out"))
    return uses


NAMES = ["backbone.safetensors", "tints/{}.safetensors", "coefficients.safetensors"]
MADE: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link out": lambda path: path.symlink_to("/etc/passwd"),
    "a dangling link": lambda path: path.symlink_to("nothing"),
    "nothing": lambda path: None,
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
@pytest.mark.parametrize("name", [*NAMES, "configs/{}/config.json"])
def test_what_is_no_file_of_the_merge_is_named(
    folder: Path, name: str, make: Callable[[Path], object]
) -> None:
    name = name.format(load_merge(str(folder)).tasks[0])
    path, aside = folder / name, folder.parent / "aside"
    path.rename(aside)
    try:
        make(path)
        for use in _uses(folder, name):
            with pytest.raises(TintrayError, match=name.replace(".", r"\.")):
                use()
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        aside.rename(path)


CONTENTS = [b"", b"\x00" * 9, b"\xff" * 64, save({"a": torch.zeros(2)})]
CONTENTS += [
    save({"coefficients": torch.zeros(1, 1)}),
    save({"classifier.weight": torch.zeros(3, 3, dtype=torch.int64)}),
]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", NAMES)
def test_tensors_that_do_not_fit_are_named(
    folder: Path, document: dict[str, Any], name: str, content: bytes
) -> None:
    """Files with the right hash whose content is not what a merge has there."""
    task = document["tasks"][0]["name"]
    for path in [name.format(task), f"configs/{task}/config.json"]:
        with replaced(folder, document, {path: content}):
            for use in _uses(folder, path):
                with pytest.raises(TintrayError) as raised:
                    use()
                assert str(raised.value).isprintable()


@contextmanager
def replaced(folder: Path, document: dict[str, Any], contents: dict[str, bytes]) -> Iterator[None]:
    """Other contents of files, and a manifest that agrees with them."""
    refs = {
        n: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for n, c in contents.items()
    }
    listed = {**document, "files": {**document["files"], **refs}}
    texts = {**contents, "manifest.json": seal(listed, "manifest.json")}
    before = {n: (folder / n).read_bytes() for n in texts if (folder / n).exists()}
    try:
        for name, text in texts.items():
            (folder / name).write_bytes(text)
        yield
    finally:
        for name in texts:
            (folder / name).unlink()
        for name, text in before.items():
            (folder / name).write_bytes(text)


def test_a_file_that_changes_while_it_is_read_is_read_as_it_was_or_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "backbone.safetensors"
    good, read = path.read_bytes(), files.read_tensors

    def replaced(opened: Path) -> dict[str, torch.Tensor]:
        aside = folder.parent / "other"
        aside.write_bytes(save({"a": torch.ones(1)}))
        aside.rename(path)
        return read(opened)

    def written(opened: Path) -> dict[str, torch.Tensor]:
        with path.open("r+b") as file:
            file.seek(len(good) - 8)
            file.write(b"\x7f" * 8)
        return {}

    try:
        monkeypatch.setattr(files, "read_tensors", replaced)
        assert "a" not in open_folder(folder).backbone
        path.write_bytes(good)
        monkeypatch.setattr(files, "read_tensors", written)
        with pytest.raises(IntegrityError, match="written to while it was read"):
            _ = open_folder(folder).backbone
    finally:
        path.write_bytes(good)


def test_code_beside_a_configuration_is_never_copied(
    folder: Path, document: dict[str, Any], tmp_path: Path
) -> None:
    task = document["tasks"][0]["name"]
    with replaced(folder, document, {f"configs/{task}/model.py": b"raise SystemExit"}):
        merge = load_merge(str(folder))
        merge.export(task, tmp_path / "out")
        assert merge.processor(task) is not None
    assert not list((tmp_path / "out").glob("*.py"))
    with pytest.raises(TintrayError, match="has no usable tokenizer") as raised:
        merge.processor(task, text=True)
    assert f"{folder}/configs/{task} has" in str(raised.value)
    assert "tintray-" not in str(raised.value).replace(str(folder), "")

    tokenizer().save_pretrained(tmp_path)
    files = ("tokenizer.json", "tokenizer_config.json")
    own = {f"configs/{task}/{name}": (tmp_path / name).read_bytes() for name in files}
    listed = dict(document["files"])
    del listed[f"configs/{task}/preprocessor_config.json"]
    with replaced(folder, {**document, "files": listed}, own):
        found = open_folder(folder).processor(task)  # a text task's, without being asked for
    assert found("w1")["input_ids"]
    assert found.name_or_path == f"{folder}/configs/{task}"
