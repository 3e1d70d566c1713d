"""``tintray merge``: whole checkpoints, without a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.cli import main

SHAPE = (64, 48)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "red", "green")):
        write(tmp_path / name, seed, blocks=3)
    return tmp_path


def write(folder: Path, seed: int, blocks: int, shape: tuple[int, int] = SHAPE) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layers.{n}.weight": torch.randn(shape, generator=generator) for n in range(blocks)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def call(*args: str) -> int:
    return main(["merge", "--base", "base", "--output", "out", *args])


def test_checkpoints_become_one(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("--method", "average", "red", "green") == 0
    assert capfd.readouterr().out.strip() == "out"
    red, green, merged = (
        load_file(folder / n / "model.safetensors") for n in ("red", "green", "out")
    )
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (red[name] + green[name]) / 2)


def test_parameters_scale_and_shards(folder: Path) -> None:
    args = ["--method", "ties", "--parameter", "density=1", "--scale", "1", "--shard", "13kB"]
    assert call(*args, "red") == 0
    files = sorted((folder / "out").glob("*.safetensors"))
    assert len(files) == 3
    red = load_file(folder / "red" / "model.safetensors")
    for file in files:
        for name, tensor in load_file(file).items():
            torch.testing.assert_close(tensor, red[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--method", "tise", "red"], "did you mean 'ties'?"),
        (["--method", "ties", "--parameter", "density", "red"], "expected NAME=NUMBER"),
        (["--method", "ties", "--parameter", "density=7", "red"], "(0, 1]"),
        (["--method", "ties", "--memory", "lots", "red"], "--memory: expected an amount"),
        (["--method", "tsv_m", "--memory", "20kB", "red"], "'layers.0.weight' [64, 48]"),
        (["--method", "average", "--scale", "-1", "red"], "--scale: expected a number above 0"),
        (["--method", "fisher", "red"], "needs statistics 'fisher'"),
        (["--method", "slerp", "red", "green", "base"], "at most 2 experts, found 3"),
        (["--method", "average", "rde"], "did you mean 'red'?"),
        (["--method", "average"], "EXPERT"),
    ],
)
def test_bad_input_is_one_sentence_and_no_byte(
    folder: Path, args: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert call(*args) == 2
    told = capfd.readouterr().err
    assert said in told
    assert sorted(path.name for path in folder.iterdir()) == before


def test_experts_that_do_not_match_are_named(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(folder / "small", 5, blocks=3, shape=(64, 47))
    assert call("--method", "average", "small") == 2
    assert "expert 'small': tensor 'layers.0.weight' has shape [64, 47]" in capfd.readouterr().err


@pytest.mark.slow
def test_an_interrupted_command_leaves_nothing(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "red")):
        write(tmp_path / name, seed, blocks=12, shape=(600, 600))
    command = [sys.executable, "-c", "import sys; from jobs.cli import main; sys.exit(main())"]
    args = ["merge", "--base", "base", "--method", "wudi", "--output", "out", "red"]
    args += ["--parameter", "steps=10000"]
    process = subprocess.Popen(
        [*command, *args], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    partial = tmp_path / ".out.partial"
    until = time.monotonic() + 60
    while not partial.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert partial.exists()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "red"]
