"""The command line without a job: help, what it imports, errors and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click
import pytest

from tintray.errors import FitError
from tintray.jobs.cli import RENAMED, cli, main, tasks
from tintray.jobs.cli.options import Duration, quiet_stdout
from tintray.jobs.runs.guard import Asked

HEAVY = ("torch", "transformers", "ray", "sqlalchemy", "pydantic", "rich", "numpy", "boto3", "yaml")
COMMANDS = [
    *("run", "plan", "validate", "merge", "methods"),
    *("list", "show", "eval", "compare", "export", "copy", "history", "diff-merges", "rollback"),
    "delete",
    *("add-task", "remove-task", "refresh-task"),
    *("submit", "ps", "status", "watch", "logs", "wait", "cancel", "resume", "retry", "diff"),
    "queue",
    *("artifacts", "gc", "db", "doctor", "init", "completion", "version"),
]
INNER = ["artifacts ls", "artifacts verify", "artifacts pin", "db upgrade", "db check"]

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """Call the command line in an empty folder; returns exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    for variable in ("TINTRAY_STORE", "TINTRAY_CATALOG", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)

    def run(*args: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(args)
        return code, *capfd.readouterr()

    return run


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


# Help


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["--version"], ["version"]])
def test_help_and_version_import_nothing_heavy(args: list[str]) -> None:
    found = python(
        "import sys\n"
        "from tintray.jobs.cli import main\n"
        f"code = main({args})\n"
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )
    assert found.stdout.splitlines()[-1] == "0 []", found.stderr


@pytest.mark.parametrize(
    ("args", "field"),
    [(["version"], "torch"), (["completion", "bash"], "script"), (["completion", "fish"], "shell")],
)
def test_what_has_no_table_is_one_json_object(
    args: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[field]


@pytest.mark.parametrize(
    ("modules", "more"), [("submission, following, differences", ()), ("views", ("pydantic",))]
)
def test_what_submits_and_lists_jobs_imports_nothing_heavy(
    modules: str, more: tuple[str, ...]
) -> None:
    """They are to answer in a moment: neither the job file nor a list of jobs needs torch."""
    found = python(
        f"import sys; from tintray.jobs.queue import {modules}\n"
        "from tintray.jobs.cli import queue_tables\n"
        f"heavy = ('torch', 'transformers', 'ray', 'numpy', 'boto3', 'alembic', *{more})\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert found.stdout.split("\n")[0] == "[]", found.stdout + found.stderr


def test_the_ways_of_growing_are_those_that_there_are() -> None:
    """The help names them without importing what grows."""
    assert set(tasks.MODES) == set(get_args(Asked))


def test_help_answers_at_once() -> None:
    """It loads click and nothing else of others: how long that takes is the machine's affair."""
    found = python(
        "import sys\n"
        "before = set(sys.modules)\n"
        "from tintray.jobs.cli import main\n"
        "main(['--help'])\n"
        "loaded = {name.partition('.')[0] for name in sys.modules.keys() - before}\n"
        "print(sorted(loaded - set(sys.stdlib_module_names)))"
    )
    assert found.stdout.splitlines()[-1] == "['click', 'tintray']", found.stdout + found.stderr


def test_help_lists_the_commands_in_sections_in_order_of_use(call: Call) -> None:
    code, out, _ = call("--help")
    below = out.partition("Merge models:")[2].partition("Exit codes:")[0]
    listed = [line.split()[0] for line in below.splitlines() if line[:3].strip()]
    assert code == 0
    assert [name for name in listed if name in COMMANDS] == COMMANDS
    assert {title for title in listed if title not in COMMANDS} == {
        *("Published", "Tasks", "Jobs", "Stores"),
    }
    assert "..." not in below  # no summary is cut off
    assert "130 interrupted" in " ".join(out.split())


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one(call: Call, old: str) -> None:
    code, out, err = call(old, "ten/v1", "--json")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: '{old}' has another name: write `tintray {RENAMED[old]}`\n")
    assert RENAMED[old] in COMMANDS


def test_jobs_and_merges_are_compared_by_two_commands(call: Call) -> None:
    code, _, err = call("diff", "ten/v1", "ten/v2")
    assert code == 2
    assert "'ten/v1' is no job; `tintray diff-merges` compares two merges" in err


@pytest.mark.parametrize("command", [*COMMANDS, *INNER])
def test_every_help_has_an_example(call: Call, command: str) -> None:
    code, out, _ = call(*command.split(), "--help")
    assert code == 0
    assert f"Example:\n    tintray {command}" in out


def test_every_answer_has_a_json_form_and_every_command_debug() -> None:
    commands: dict[str, click.Command] = dict(cli.commands)
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            commands |= {f"{name} {inner}": found for inner, found in command.commands.items()}
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands.items()
    }
    assert set(options) == {*COMMANDS, *INNER}
    groups = {name for name, command in commands.items() if isinstance(command, click.Group)}
    assert {name for name, found in options.items() if "--json" not in found} == groups
    assert {name for name, found in options.items() if "--debug" not in found} == set()


def test_version(call: Call) -> None:
    _, short, _ = call("--version")
    code, out, _ = call("version")
    assert code == 0
    assert out.startswith(short)
    assert [line.split()[0] for line in out.splitlines()][:3] == ["tintray", "python", "torch"]


# Errors


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rnu"], ["'rnu'", "Did you mean 'run'?", "Try 'tintray --help'."]),
        (["run"], ["'JOB.yaml'", "Try 'tintray run --help'."]),
        (["run", "x.yaml", "--ste", "a=1"], ["'--ste'", "Did you mean '--set'?"]),
        (["artifacts", "lss"], ["'lss'", "'ls'"]),
        (["show", "x", "--store", "gs://x"], ["--store", "s3:// URL", "'gs://x'"]),
        (["show", "x", "--catalog", "x.db"], ["--catalog", "a database URL", "'x.db'"]),
        (["run", "job.yml"], ["job.yml: expected a job file", "'job.yaml'"]),
        (["run", "job.yaml"], ["job.yaml, line 1", "'nam' is not a field", "'name'"]),
        (["run", "job.yaml", "--set", "x"], ["--set x", "key.path=value"]),
        (["list"], ["catalog", "run a job"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    call: Call, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    (tmp_path / "job.yaml").write_text("nam: x\n")
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert [word for word in words if word not in err] == []
    assert err.startswith("error: ")
    assert err.count("error") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "tintray-data").exists()


@pytest.mark.parametrize(
    "args", [["--debug", "run", "no.yaml"], ["run", "no.yaml", "--debug"], ["run", "no.yaml"]]
)
def test_debug_shows_the_traceback(call: Call, args: list[str]) -> None:
    code, _, err = call(*args)
    assert code == 2
    assert ("Traceback" in err) == ("--debug" in args)
    assert err.splitlines()[-1] == "error: no.yaml: expected a job file, found none"


def test_no_command_shows_the_help(call: Call) -> None:
    code, out, err = call()
    assert (code, out) == (2, "")
    assert "Jobs on a cluster:" in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (FitError("round 3: the loss is nan"), 1, "error: round 3: the loss is nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            EOFError("no\n data"),
            1,
            "internal error: EOFError: no data; run again with --debug\n",
        ),
        (
            BrokenPipeError("gone"),
            1,
            "internal error: BrokenPipeError: gone; run again with --debug\n",
        ),
    ],
)
def test_failures_while_running(
    error: BaseException, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    @click.command("fails")
    def fails() -> None:
        raise error

    cli.add_command(fails)
    try:
        assert main(["fails"]) == code
    finally:
        del cli.commands["fails"]
    assert capfd.readouterr() == ("", words)


def test_debug_of_one_call_does_not_reach_the_next(call: Call) -> None:
    call("run", "no.yaml", "--debug")
    assert "Traceback" not in call("run", "no.yaml")[2]


def test_a_reader_that_has_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from tintray.jobs.cli.options import until_closed\n"
            "with until_closed():\n"
            "    for _ in range(100000): print('a line that nobody reads')\n",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=30) == 1
    assert "BrokenPipe" not in said


# Where words go


def test_standard_output_is_kept_for_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_stdout():
        print("from Python")
        os.write(1, b"from a library\n")
        subprocess.run(["echo", "from a child"], check=True)
    print("the result")
    out, err = capfd.readouterr()
    assert out == "the result\n"
    assert sorted(err.splitlines()) == ["from Python", "from a child", "from a library"]


def test_standard_output_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), quiet_stdout():
        raise RuntimeError
    os.write(1, b"the result\n")
    assert capfd.readouterr().out == "the result\n"


def test_interrupting_the_real_command_exits_with_130() -> None:
    """Ctrl-C while a command waits for what never comes."""
    program = (
        "import time\n"
        "from tintray.jobs import api\n"
        "from tintray.jobs.cli import main\n"
        "def never(*_, **__):\n"
        "    print('it waits', flush=True)\n"
        "    time.sleep(300)\n"
        "api.list_merges = never\n"
        "raise SystemExit(main(['list']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "it waits\n"  # what is no result goes there
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", "interrupted")
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
