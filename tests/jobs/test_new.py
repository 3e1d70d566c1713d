"""``tintray new``: a job file for somebody's own experts, which is right or is not written."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from PIL import Image

from tests.answers import call
from tests.sorts import SORTS, make_zoo
from tintray.jobs.cli.writing import TEMPLATES
from tintray.jobs.config.job_file import load_spec
from tintray.jobs.config.reference import editor_line, schema_file
from tintray.jobs.runs import new_job

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoos")
    for name in ("pictures", "scenes", "sentences", "adapters"):
        (folder / name).mkdir()
        make_zoo(name, folder / name)
    return folder


@pytest.fixture
def here(zoos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the zoos of pictures and adapters, where the user stands."""
    for name in ("pictures", "adapters"):
        shutil.copytree(zoos / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("zoo", "sort"),
    [("pictures", "head"), ("scenes", "dense"), ("sentences", "language"), ("adapters", "lora")],
)
def test_what_a_folder_of_experts_holds_becomes_a_job_file_that_validates(
    zoos: Path, tmp_path: Path, zoo: str, sort: str
) -> None:
    """Paths start from the file; its job is the one that somebody wrote by hand, task by task."""
    file = tmp_path / "job.yaml"
    made = call("new", zoos / zoo, "-o", file, "--yes", "--json")
    assert made.document == {"path": str(file), "tasks": sorted(NAMES)}
    assert file.read_text().startswith(editor_line())
    jsonschema.validate(
        yaml.safe_load(file.read_text()), json.loads(schema_file("job").read_text())
    )
    spec = load_spec(file)
    assert (spec.name, spec.base) == (zoo, str(zoos / zoo / "base"))
    for task in spec.tasks:
        wanted = SORTS[sort].task(zoos / zoo, task.name)
        assert (task.kind, task.expert) == (wanted["kind"], wanted["expert"])
        assert task.pool.path == wanted["pool"]["path"]
        assert task.test is not None and task.test.path == wanted["test"]["path"]
    if sort == "language":  # its head is tied to its embeddings
        assert spec.tint.told == "transformer.h.1 (rank 8)"


def test_a_job_file_that_was_written_runs(here: Path) -> None:
    assert call("new", "pictures/one", "pictures/two").code == 0
    few = ("--set", "fit.rounds=2", "--set", "cluster.workers=0", "--set", f"store={here}/store")
    summary = call("run", "job.yaml", *few, "--json").document
    assert [task["name"] for task in summary["tasks"]] == ["one", "two"]


def test_data_are_found_by_pattern_and_columns_by_what_they_hold(here: Path) -> None:
    (here / "rows").mkdir()
    for name in ("one", "two"):
        for split in ("train", "test"):
            (file := here / "adapters" / f"{name}_{split}.jsonl")
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            named = [{"remark": row["text"], "stars": row["label"]} for row in rows]
            (here / f"rows/{split}-{name}.jsonl").write_text("\n".join(map(json.dumps, named)))
            file.unlink()
    patterns = ("--data", "rows/train-{task}.jsonl", "--test", "rows/test-{task}.jsonl")
    words = ("new", "adapters/one", "adapters/two", *patterns, "--yes")
    for more in ((), ("--column", "text=remark", "--column", "label=stars")):
        assert call(*words, *more, "--force").code == 0
        task = load_spec(here / "job.yaml").tasks[0]
        assert task.pool.columns == {"text": "remark"}
        assert task.test is not None and task.test.columns == {"text": "remark", "label": "stars"}
    assert "'remarks'" in call(*words, "--force", "--column", "text=remarks").sentence


def test_a_folder_of_images_is_pool_and_test_set_by_its_splits(here: Path) -> None:
    for split in ("train", "test"):
        (here / "pictures" / f"one_{split}.npz").unlink()
        (folder := here / "pictures/data/one" / split / "0").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "0.png")
    models = ("pictures/base", "pictures/one")  # as a shell expands pictures/*
    assert call("new", *models, "--yes", "--no-check").code == 0
    task = load_spec(here / "job.yaml").tasks[0]
    assert task.test is not None and task.test.path == task.pool.path
    assert (task.pool.split, task.test.split) == ("train", "test")


def test_nothing_is_written_of_what_does_not_fit_together(here: Path, zoos: Path) -> None:
    config = here / "pictures/one/config.json"
    sentences = {
        ("pictures/one", "adapters/base"): "is a model of the family 'bert'",
        ("pictures/one", "--base", "adapters/base"): "--base: adapters/base is a model of",
        ("pictures/one", "--base", "adapters/two"): "is an adapter; expected the model",
        ("pictures/one", "--data", "nowhere.npz"): "does not exist",
        ("pictures/one", zoos / "pictures/one"): "would both be the task 'one'",
        ("picturs",): "did you mean 'pictures'?",
        ("empty",): "expected a model folder, or a folder of model folders",
        ("pictures/base", "--base", "pictures/base"): "is the base; expected an expert",
    }
    (here / "empty").mkdir()
    for words, sentence in sentences.items():
        assert sentence in call("new", *words, "--yes").sentence, words
    (here / "pictures/one_train.npz").unlink()
    said = call("new", "pictures/one", "--yes").sentence
    assert "Where are examples of the task 'one'?" in said and "--data" in said
    shutil.copytree(zoos / "pictures/base", here / "pictures/other")
    (here / "pictures/base").rename(here / "pictures/first")
    said = call("new", "pictures/two", "--yes").sentence
    assert "pictures/first, pictures/one, pictures/other" in said and "--base" in said
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"hidden_size": 16}))
    said = call(
        "new", "pictures/one", "--base", "pictures/first", "--data", "pictures/two_train.npz"
    )
    assert "hidden_size" in said.sentence  # what validate finds
    assert not (here / "job.yaml").exists() and not (here / "tintray-data").exists()


def test_who_sits_at_a_terminal_is_asked_what_nothing_tells(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the number of a choice, or by an answer of one's own."""
    shutil.copytree(here / "pictures/base", here / "pictures/other")
    (here / "pictures/base").rename(here / "pictures/first")
    moved = (here / "pictures/one_train.npz").rename(here / "elsewhere.npz")
    (here / "pictures/one_test.npz").unlink()
    terminal = io.StringIO(f"1\n{moved}\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    said = call("new", "pictures/one", "--no-check")
    assert said.code == 0, said.err
    assert "1  pictures/first" in said.err and "Where are examples of the task 'one'?" in said.err
    spec = load_spec(here / "job.yaml")
    assert (spec.base, spec.tasks[0].pool.path) == (str(here / "pictures/first"), str(moved))


def test_a_file_that_is_there_is_kept_and_a_rehearsal_writes_none(here: Path) -> None:
    shown = call("new", "pictures", "--dry-run", "--no-check")
    assert shown.out.startswith(editor_line()) and not (here / "job.yaml").exists()
    (here / "job.yaml").write_text("mine")
    assert "--force" in call("new", "pictures").sentence
    assert "is a folder" in call("new", "pictures", "-o", "pictures", "--force").sentence
    assert (here / "job.yaml").read_text() == "mine"
    assert call("new", "pictures", "--no-check", "--force").code == 0


@pytest.mark.parametrize("form", TEMPLATES)
def test_templates_are_job_files_but_for_what_they_name(form: str, here: Path) -> None:
    assert TEMPLATES == new_job.TEMPLATES  # the command knows them without what looks at models
    assert call("new", "--template", form).code == 0
    document = yaml.safe_load((here / "job.yaml").read_text())
    jsonschema.validate(document, json.loads(schema_file("job").read_text()))
    named = [document["base"], *(task["expert"] for task in document["tasks"])]
    for place in named:
        (here / place).mkdir(parents=True)
    for task in document["tasks"]:
        for data in (task["pool"], task["test"]):
            (here / data["path"]).parent.mkdir(exist_ok=True)
            (here / data["path"]).touch()
    assert [task.name for task in load_spec(here / "job.yaml").tasks] == [
        task["name"] for task in document["tasks"]
    ]


@pytest.mark.parametrize("text", ["no", "7", "a: b", "x #y", "{a}", "train[:5]", "ü", "", "a\tb"])
def test_any_text_stays_itself_in_a_job_file(text: str) -> None:
    for flow, around in ((True, "{{a: {}}}"), (False, "a: {}  # about it")):
        written = around.format(new_job.scalar(text, flow=flow))
        assert yaml.safe_load(written) == {"a": text}


def test_what_a_stranger_has_written_stays_in_its_line(here: Path) -> None:
    """Names in configurations come from whoever made the model."""
    file = here / "adapters/one/adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"peft_type": "LORA\nbase: evil", "r": [1]}))
    shown = call("new", "adapters/one", "--base", "adapters/base", "--no-check", "--dry-run").out
    assert yaml.safe_load(shown)["base"] == "adapters/base"
    assert "\nbase: evil" not in shown


def test_experts_of_the_hub_keep_their_names(
    here: Path, zoos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a folder here: what its client leaves on this machine."""
    import huggingface_hub

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        return str(zoos / "pictures" / hub_id.removeprefix("org/vit-"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    words = ("new", "org/vit-one", "hf://org/vit-two", "--base", "org/vit-base", "--yes")
    assert "--data" in call(*words).sentence
    (here / "data").mkdir()
    for name in ("one", "two"):
        for split in ("train", "test"):
            file = zoos / f"pictures/{name}_{split}.npz"
            shutil.copy(file, here / f"data/vit-{name}_{split}.npz")
    assert call(*words, "--name", "both").code == 0  # data/ beside the job file
    spec = load_spec(here / "job.yaml")
    assert (spec.name, spec.base.written) == ("both", "org/vit-base")
    assert [task.expert.written for task in spec.tasks] == ["org/vit-one", "hf://org/vit-two"]
    assert all(task.test is not None for task in spec.tasks)
