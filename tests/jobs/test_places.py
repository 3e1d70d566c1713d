"""Where commands look and write: ``--store`` and ``--catalog`` of each, and ``--dry-run``."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tests.answers import COMMANDS, call
from tests.fake_head import fake_head
from tests.tiny_zoo import TinyZoo

READS = {
    *("plan", "validate", "fields", "methods", "list", "show", "eval", "conflicts", "check"),
    *("history", "diff-merges", "ps", "status", "watch", "logs", "wait", "diff", "doctor"),
    *("artifacts ls", "artifacts verify", "gc", "db check", "completion", "version"),
    "ui",
}
"""Commands that write nothing but what they remember, or (gc) unless told. Serving is not rehearsed
either."""
NAMES_A_JOB = {
    *("JOB", "JOB.yaml", "[JOB.yaml]", "MERGE", "[MERGE]", "MERGE|JOB", "NAME[@ALIAS]"),
}


@pytest.mark.parametrize("words", COMMANDS)
def test_whoever_names_a_job_or_a_merge_may_say_where_it_is(words: str) -> None:
    command = COMMANDS[words]
    arguments = {one.metavar for one in command.params if isinstance(one, click.Argument)}
    options = {name for one in command.params for name in one.opts}
    if arguments & NAMES_A_JOB or words in ("ps", "list", "queue"):
        assert {"--store", "--catalog"} <= options


@pytest.mark.parametrize("words", [words for words in COMMANDS if not words.startswith("serve")])
def test_whatever_writes_can_be_rehearsed(words: str) -> None:
    if not isinstance(COMMANDS[words], click.Group):
        rehearsed = any("--dry-run" in one.opts for one in COMMANDS[words].params)
        assert rehearsed != (words in READS)


@pytest.mark.parametrize("words", COMMANDS)
def test_what_a_shell_would_expand_is_quoted_in_examples(words: str) -> None:
    said = (COMMANDS[words].help or "").partition("Example:")[2]
    for line in filter(None, map(str.strip, said.splitlines())):
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
        assert not set(bare) & set("*?[]{}#$"), line


def test_an_option_goes_before_the_job_file_and_that_before_the_setting(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that docs/jobs.md tells, of all commands that are given a place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINTRAY_STORE", str(tmp_path / "set"))
    monkeypatch.delenv("TINTRAY_CATALOG", raising=False)
    zoo = tiny.copy(tmp_path / "zoo")
    job = zoo.job_file(tmp_path / "written", tasks=("two", "three"), fit={"rounds": 1})

    def used(*options: str) -> str:
        """The folder below which the run has published."""
        url = call("run", job, *options, "--json").document["url"]
        return Path(url).relative_to(f"file:{tmp_path}").parts[0]

    assert used() == "written"
    assert used("--store", "./given") == "given"  # from the current folder
    job.write_text(re.sub("store: .*", "", job.read_text()))
    assert used() == "set"
    for command in ("ps", "status latest", "logs latest", "queue", "diff latest latest"):
        for folder in ("written", "given", "set"):
            assert call(*command.split(), "--store", f"./{folder}").code == 0, command
        assert call(*command.split(), "--store", "./nowhere").code == 2
    catalog = f"sqlite:///{tmp_path}/given/catalog.db"
    given = call("ps", "--store", "./nowhere", "--catalog", catalog, "--json").document
    assert [line["id"] for line in given] == [
        line["id"] for line in call("ps", "--store", "./given", "--json").document
    ]
    assert "--store: expected" in call("validate", job, "--store", "gs://x").sentence
    assert call("validate", job, "--catalog", "x.db").sentence.startswith("error: --catalog:")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("catalog.db-")
    }


def test_a_rehearsal_of_any_command_writes_nothing(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINTRAY_CONFIG", str(tmp_path / "config.toml"))
    zoo = tiny.copy(tmp_path / "zoo")
    job = zoo.job_file(tmp_path / "store", tasks=("two", "three", "four"), fit={"rounds": 1})
    assert call("run", job).code == 0
    assert call("remove-task", "tiny", "four", "--store", "store").code == 0
    (tmp_path / "five.yaml").write_text(
        "{name: five, expert: zoo/five, pool: {path: zoo/five.npz}}"
    )
    assert call("new-key", "key").code == 0
    (tmp_path / "ties.yml").write_text(
        "{merge_method: linear, models: [{model: zoo/five, parameters: {weight: 1}}]}"
    )
    monkeypatch.setenv("TINTRAY_ADDRESS", "http://127.0.0.1:8265")
    lost = call("ps", "--store", "store", "--json").document[0]["id"]
    pinned = call("artifacts", "ls", "--store", "store", "--json").document[0]["sha256"]
    before = contents(tmp_path)
    for words, said in {
        f"run {job} --dry-run": "everything it refers to holds",
        f"run {job} --store fresh --dry-run": "everything it refers to holds",
        "add-task tiny five.yaml --store store --dry-run": "five",
        "remove-task tiny two --store store --dry-run": "three",
        "refresh-task tiny two --expert zoo/two --store store --dry-run": "two",
        "rollback tiny --store store --dry-run": "what tiny/v1 is would follow tiny/v2",
        "delete tiny/v1 --store store --dry-run": "would remove tiny/v1",
        "copy tiny/v1 other --store store --dry-run": "nothing was written",
        "export tiny new --store store --task two --dry-run": "tiny/v2, task two, can be written",
        "merge zoo/five --base zoo/five --method average --output new --dry-run": "nothing was",
        "init --store mine --dry-run": "nothing was written",
        "db upgrade --store store --dry-run": "has schema version",
        "db prune --older-than 0 --store store --dry-run": "would be forgotten",
        "sign tiny --key key --store store --dry-run": "would be signed",
        "db upgrade --store new --dry-run": "would be created",
        "alias tiny@production v1 --store store --dry-run": "tiny/v1",
        "new zoo/two --base zoo/base --no-check --dry-run": "yaml-language-server",
        "run --from-mergekit ties.yml --output new --dry-run": "new can be written",
        "report tiny --store store --dry-run": f"can be written to {tmp_path}/tiny-v2.html",
        "report tiny --store store --format md --dry-run": "can be written to standard output",
        "explain tiny --task two --format html --store store --dry-run": f"{tmp_path}/tiny-v2-two.",
        "explain tiny --task two --store store --dry-run": "can be written to standard output",
        "new-key other-key --dry-run": "other-key.pub; nothing was",
        "compare tiny --store store --plot a.svg --dry-run": "with average, task_arithmetic",
        "add-router tiny --store store --dry-run": "a child of tiny/v2 that routes",
        f"artifacts pin {pinned} --store store --dry-run": "can be pinned",
        "queue --max-jobs 3 --store store --dry-run": "http://127.0.0.1:8265 would run 3 jobs",
    }.items():
        found = call(*words.split())
        assert found.code == 0 and said in found.out, found.err
        assert contents(tmp_path) == before, words
    assert not (tmp_path / "fresh").exists() and not (tmp_path / "new").exists()
    assert "is succeeded" in call("cancel", lost, "--store", "store", "--dry-run").sentence
    taken = ("export", "tiny", "zoo", "--store", "store", "--dry-run")
    assert "key.pub is there already" in call("new-key", "key", "--dry-run").sentence
    assert "is not empty" in call(*taken).sentence
    assert "did you mean 'two'" in call(*taken, "--task", "twoo").sentence
    refused = call(
        "add-task", "tiny", "five.yaml", "--set", "growth.x=1", "--store", "store", "--dry-run"
    )
    assert "'growth.x'" in refused.err


def test_a_submission_is_rehearsed_against_its_cluster(tiny: TinyZoo, tmp_path: Path) -> None:
    job = tiny.copy(tmp_path / "zoo").job_file(tmp_path / "store")
    with fake_head() as (address, submitted):
        found = call("submit", job, "--address", address, "--dry-run")
        assert found.code == 0 and "can be entered" in found.out, found.err
        assert submitted == [] and not (tmp_path / "store").exists()
    gone = call("submit", job, "--address", "http://127.0.0.1:1", "--dry-run")
    assert gone.code != 0 and "127.0.0.1:1" in gone.err
