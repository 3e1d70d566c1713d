"""The command line without a job: help, what it imports, errors and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest

from tests.answers import COMMANDS, call
from tintray.errors import FitError
from tintray.jobs.cli import RENAMED, SECTIONS, cli, tasks
from tintray.jobs.cli.options import Duration, quiet_stdout
from tintray.jobs.runs.guard import Asked


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path


def started(program: str) -> subprocess.Popen[str]:
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], text=True, **both)


# Help


CALL = "from tintray.jobs.cli import main; main(%r)"
LISTS = "import tintray.jobs.queue.%s, tintray.jobs.cli.queue_tables"


@pytest.mark.parametrize(
    ("program", "light"),
    [
        (CALL % ["--help"], "click tintray"),
        (CALL % ["run", "--help"], "click tintray"),
        (CALL % ["--version"], "click tintray"),
        (CALL % ["version"], "click tintray"),
        (LISTS % "views", "sqlalchemy rich"),
        ("import tintray.jobs.runs.history, tintray.jobs.cli.growth_tables", "rich"),
        (LISTS % "submission, tintray.jobs.queue.following", "sqlalchemy rich pydantic yaml"),
    ],
)
def test_what_is_to_answer_in_a_moment_imports_nothing_heavy(program: str, light: str) -> None:
    """Neither the help nor the job file nor a list of jobs needs torch; the help needs click."""
    heavy = "import sys\nbefore = set(sys.modules)\n" + program + "\n"
    heavy += "loaded = {name.partition('.')[0] for name in sys.modules.keys() - before}\n"
    heavy += "print(*sorted(loaded - set(sys.stdlib_module_names)))"
    out, err = started(heavy).communicate(timeout=60)
    loaded = set(out.splitlines()[-1].split())
    if light.startswith("click"):
        assert loaded == set(light.split()), err
    else:
        slow = {"torch", "transformers", "ray", "numpy", "boto3", "alembic", "pydantic"}
        assert loaded & slow <= set(light.split()), err
        assert loaded, err


def test_the_ways_of_growing_are_those_that_there_are() -> None:
    """The help names them without importing what grows."""
    assert set(tasks.MODES) == set(get_args(Asked))


def test_each_command_is_found_where_its_name_says_and_has_that_name() -> None:
    assert {name: command.name for name, command in cli.commands.items()} == {
        name: name for found in SECTIONS.values() for name in found
    }


def test_help_lists_the_commands_in_sections_in_order_of_use() -> None:
    code, out = call("--help").code, call("--help").out
    below = out.partition("Options:")[2].partition("Exit codes:")[0]
    listed = [line.split()[0] for line in below.splitlines() if line[:3].strip()]
    expected = [name.split()[0] for title, found in SECTIONS.items()
                for name in (title, *found)]  # fmt: skip
    assert (code, [name for name in listed if not name.startswith("-")]) == (0, expected)
    assert "..." not in below  # no summary is cut off
    assert "130 interrupted" in " ".join(out.split())


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one(old: str) -> None:
    sentence = f"error: '{old}' has another name: write `tintray {RENAMED[old]}`\n"
    assert call(old, "ten/v1", "--json").err.startswith(sentence)
    assert RENAMED[old] in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_a_json_form_and_debug(command: str) -> None:
    found = call(*command.split(), "--help")
    assert found.code == 0
    assert f"Example:\n    tintray {command}" in found.out
    group = isinstance(COMMANDS[command], click.Group)
    assert ("--json" in found.out, "--debug" in found.out) == (not group, True)


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_of_a_help_is_longer_than_the_terminal_and_none_is_cut_off(width: int) -> None:
    for words, known in {"": cli, **COMMANDS}.items():
        context = known.context_class(known, info_name=f"tintray {words}".strip())
        context.terminal_width = width
        said = known.get_help(context)
        assert max(map(len, said.splitlines())) <= width, words
        whole = " ".join(said.split())
        for below in getattr(known, "commands", {}).values():
            assert f"{below.name} {below.get_short_help_str(200)}" in whole
        example = said.partition("Example:\n")[2].partition("\n\n")[0].replace("\\\n", "")
        written = (known.help or "").partition("Example:\n")[2]
        assert " ".join(example.split()) == " ".join(written.split())


def test_version() -> None:
    found = call("version")
    assert (found.code, call("--version").out) == (0, found.out.splitlines(keepends=True)[0])
    document = call("version", "--json").document
    assert [line.split()[0] for line in found.out.splitlines()] == list(document)
    assert list(document)[:3] == ["tintray", "python", "torch"]


# Errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rnu", ["'rnu'", "Did you mean 'run'?", "Try 'tintray --help'."]),
        ("run", ["'JOB.yaml'", "Try 'tintray run --help'."]),
        ("run x.yaml --recipee fast", ["'--recipee'", "Did you mean '--recipe'?"]),
        ("artifacts lss", ["'lss'", "'ls'"]),
        ("diff ten/v1 x", ["'ten/v1' is no job; `tintray diff-merges` compares two merges"]),
        ("show x --store gs://x", ["--store", "s3:// URL", "'gs://x'"]),
        ("show x --catalog x.db", ["--catalog", "a database URL", "'x.db'"]),
        ("run job.yml", ["job.yml: expected a job file", "'job.yaml'"]),
        ("run job.yaml", ["job.yaml, line 1", "'nam' is not a field", "'name'"]),
        ("run job.yaml --set x", ["--set x", "key.path=value"]),
        ("list", ["catalog", "run a job"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    elsewhere: Path, words: str, said: list[str]
) -> None:
    (elsewhere / "job.yaml").write_text("nam: x\n")
    found = call(*words.split())
    assert (found.code, found.out) == (2, "")
    assert [word for word in said if word not in found.err] == []
    assert found.err.startswith("error: ")
    assert found.err.count("error") == 1
    assert "Traceback" not in found.err
    assert not (elsewhere / "tintray-data").exists()


@pytest.mark.parametrize("words", ["--debug run no.yaml", "run no.yaml --debug", "run no.yaml"])
def test_debug_shows_the_traceback_of_one_call(words: str) -> None:
    for debug in ("--debug" in words, False):
        found = call(*words.split()) if debug else call("run", "no.yaml")
        assert ("Traceback" in found.err) == debug
        assert found.err.splitlines()[-1] == "error: no.yaml: expected a job file, found none"
        assert found.code == 2


def test_no_command_shows_the_help() -> None:
    found = call()
    assert (found.code, found.out, "Jobs on a cluster:" in found.err) == (2, "", True)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FitError("round 3: the loss is nan"), 1, "error: round 3: the loss is nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (EOFError("no\n data"), 1, "internal error: EOFError: no data; run again with --debug\n"),
        (BrokenPipeError("x"), 1, "internal error: BrokenPipeError: x; run again with --debug\n"),
    ],
)
def test_failures_while_running(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setitem(cli.commands, "fails", click.command("fails")(fails))
    found = call("fails")
    assert (found.code, found.out, found.err) == (code, "", said)


# Where words go


def test_a_reader_that_has_enough_is_no_error() -> None:
    process = started(
        "from tintray.jobs.cli.options import until_closed\n"
        "with until_closed():\n"
        "    for _ in range(100000): print('a line that nobody reads')\n"
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 1
    assert "BrokenPipe" not in said


def test_standard_output_is_kept_for_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), quiet_stdout():
        print("from Python")
        os.write(1, b"from a library\n")
        subprocess.run(["echo", "from a child"], check=True)
        raise RuntimeError
    print("the result")
    out, err = capfd.readouterr()
    assert out == "the result\n"
    assert sorted(err.splitlines()) == ["from Python", "from a child", "from a library"]


def test_interrupting_the_real_command_exits_with_130() -> None:
    """Ctrl-C while a command waits for what never comes."""
    process = started(
        "import time\n"
        "from tintray.jobs.runs import merge_list\n"
        "from tintray.jobs.cli import main\n"
        "def never(*_, **__):\n"
        "    print('it waits', flush=True)\n"
        "    time.sleep(300)\n"
        "merge_list.list_merges = never\n"
        "raise SystemExit(main(['list']))\n"
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "it waits\n"  # what is no result goes there
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "interrupted")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("30", 30.0), ("0.5", 0.5), ("90m", 5400.0), ("24h", 86400.0), ("7d", 604800.0)],
)
def test_lengths_of_time(written: str, seconds: float) -> None:
    assert Duration().convert(written, None, None) == seconds


@pytest.mark.parametrize("written", ["", "m", "nan", "inf", "-1", "7w", "9" * 400])
def test_what_is_no_length_of_time(written: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a length of time such as 30, 90m or 7d"):
        Duration().convert(written, None, None)
