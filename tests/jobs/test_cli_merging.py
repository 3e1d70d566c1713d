"""``tintray merge``: whole checkpoints, without a job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tintray.checkpoints.model_folder import open_model_folder
from tintray.errors import SpecError
from tintray.jobs.cli import main
from tintray.jobs.config.merge_sections import ADAMERGING, SURGERY
from tintray.merging import methods as known_methods
from tintray.merging import recipe
from tintray.merging.files.writing import merge_checkpoints

COMMAND = [sys.executable, "-c", "import sys; from tintray.jobs.cli import main; sys.exit(main())"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "red", "green")):
        write(tmp_path / name, seed, blocks=3)
    return tmp_path


def write(folder: Path, seed: int, blocks: int, shape: tuple[int, int] = (64, 48)) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layers.{n}.weight": torch.randn(shape, generator=generator) for n in range(blocks)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / name / "model.safetensors")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def call(*args: str) -> int:
    return main(["merge", "--base", "base", "--output", "out", *args])


@pytest.mark.parametrize("experts", [["red", "green"], ["red", "red", "green"]])
def test_checkpoints_become_one(
    folder: Path, capfd: pytest.CaptureFixture[str], experts: list[str]
) -> None:
    """One that is given twice counts twice; how the base generates comes along."""
    (folder / "base" / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert call("--method", "average", *experts) == 0
    assert capfd.readouterr().out.strip() == "out"
    given = [weights(folder, name) for name in experts]
    for name, tensor in weights(folder, "out").items():
        torch.testing.assert_close(tensor, sum(of[name] for of in given) / len(given))
    assert (folder / "out" / "generation_config.json").read_text() == '{"eos_token_id": 2}'


def test_experts_that_number_their_classes_differently_are_refused(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The base need not name any."""
    for name, labels in (("red", {"0": "cat", "1": "dog"}), ("green", {"0": "dog", "1": "cat"})):
        (folder / name / "config.json").write_text(json.dumps({"id2label": labels}))
    assert call("--method", "average", "red", "green") == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "expert 'green'" in said
    assert "calls class 0 'dog', expert 'red' calls it 'cat'" in said
    assert not (folder / "out").exists()
    assert call("--method", "average", "red", "red") == 0


def test_parameters_scale_and_shards(folder: Path) -> None:
    args = ["--method", "ties", "--parameter", "density=1", "--scale", "1", "--shard", "13kB"]
    assert call(*args, "red") == 0
    files = sorted((folder / "out").glob("*.safetensors"))
    assert len(files) == 3
    red = weights(folder, "red")
    for file in files:
        for name, tensor in load_file(file).items():
            torch.testing.assert_close(tensor, red[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--method tise red", "did you mean 'ties'?"),
        ("--method ties --parameter density red", "expected NAME=NUMBER"),
        ("--method ties --parameter density=7 red", "(0, 1]"),
        ("--method ties --memory lots red", "--memory: expected an amount"),
        ("--method tsv_m --memory 20kB red", "'layers.0.weight' [64, 48]"),
        ("--method average --scale -1 red", "--scale: expected a number from 0 to"),
        ("--method fisher red", "needs statistics 'fisher'"),
        ("--method slerp red green base", "at most 2 experts, found 3; use 'karcher'"),
        ("--method average rde", "did you mean 'red'?"),
        ("--method average", "EXPERT"),
        ("--method surgery red", "learns on the tasks' unlabelled pools"),
        ("--method ties --parameter density=1 --parameter density=0.5 red", "is given twice"),
        ("--method average --output red green", "red exists; give a new folder"),
    ],
)
def test_bad_input_is_one_sentence_and_no_byte(
    folder: Path, args: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = names(folder)
    assert call(*args.split()) == 2
    assert said in capfd.readouterr().err
    assert names(folder) == before


def test_a_gpu_that_is_not_there_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call("--method", "average", "--device", "cuda", "red") == 2
    assert "expected cpu, since torch finds no GPU here, found 'cuda'" in capfd.readouterr().err
    assert names(folder) == ["base", "green", "red"]


def test_a_disk_without_room_is_refused_before_a_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**15))
    assert call("--method", "average", "red") == 1
    assert "0 MiB are free on the disk of" in capfd.readouterr().err
    assert names(folder) == ["base", "green", "red"]


def test_a_disk_that_fills_on_the_way_leaves_nothing(folder: Path) -> None:
    """The kernel itself refuses to write more than 20,000 bytes into one file."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    args = ["merge", "--base", "base", "--method", "average", "--output", "out", "red"]
    done = subprocess.run(
        [*COMMAND[:2], limit + COMMAND[2], *args], cwd=folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nothing of it is kept" in done.stderr
    assert names(folder) == ["base", "green", "red"]


def test_what_a_killed_merge_left_is_no_obstacle(folder: Path) -> None:
    (folder / ".out.abc.partial").mkdir()
    (folder / ".out.abc.partial" / "model.safetensors").write_bytes(b"half")
    assert call("--method", "average", "red") == 0
    assert names(folder) == ["base", "green", "out", "red"]


def test_two_merges_into_one_folder_leave_each_other_alone(folder: Path) -> None:
    """The second begins while the first is at work, ends sooner, and is the one that counts."""
    held: list[int] = []

    def second(done: int, total: int) -> None:
        if not held:
            held.append(call("--method", "average", "green"))

    base, red = (open_model_folder(folder / name) for name in ("base", "red"))
    with pytest.raises(SpecError, match="out exists by now: another merge into it ended first"):
        merge_checkpoints(base, {"red": red}, folder / "out", recipe("average"), progress=second)
    assert held == [0]
    assert names(folder) == ["base", "green", "out", "red"]
    torch.testing.assert_close(weights(folder, "out"), weights(folder, "green"))


@pytest.mark.slow
def test_an_interrupted_command_leaves_nothing(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "red")):
        write(tmp_path / name, seed, blocks=12, shape=(600, 600))
    args = ["merge", "--base", "base", "--method", "wudi", "--output", "out", "red"]
    process = subprocess.Popen(
        [*COMMAND, *args, "--parameter", "steps=10000"], cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial")) and time.monotonic() < until:
        time.sleep(0.05)
    assert list(tmp_path.glob(".out.*.partial"))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert names(tmp_path) == ["base", "red"]


# A plugin, as somebody else would install it

PLUGIN = """
from torch import Tensor
from tintray.merging import Layer, Parameter, method


@method("median", summary="The median task vector.", source="Tukey 1977", elementwise=True,
        parameters=[Parameter("share", 1.0, 0, 1, "share of the median")])
def median(layer: Layer, share: float) -> Tensor:
    middle = share * layer.vectors.median(0).values
    return middle.expand_as(layer.vectors) / len(layer.vectors)
"""


def test_an_installed_plugin_is_a_method(folder: Path) -> None:
    metadata = folder / "site" / "tintray_median-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "site" / "tintray_median.py").write_text(PLUGIN)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tintray-median\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text("[tintray.methods]\nmedian = tintray_median\n")
    paths = (str(folder / "site"), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))
    args = ["merge", "--base", "base", "--method", "median", "--parameter", "share=0.5"]
    done = subprocess.run(
        [*COMMAND, *args, "--output", "out", "red", "green", "base"], cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    base, red, green = (weights(folder, name) for name in ("base", "red", "green"))
    for name, tensor in weights(folder, "out").items():
        vectors = torch.stack([red[name] - base[name], green[name] - base[name], 0 * base[name]])
        torch.testing.assert_close(tensor, base[name] + 0.5 * vectors.median(0).values)


# Which methods there are


def answer(capfd: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["methods", *args]) == 0
    return capfd.readouterr().out


def test_methods_are_listed_described_and_have_a_json_form(
    capfd: pytest.CaptureFixture[str],
) -> None:
    listed = [line.split()[0] for line in answer(capfd).splitlines()[1:]]
    assert listed == [*known_methods(), *ADAMERGING, SURGERY]
    assert "that is kept; in (0, 1], default 0.2" in " ".join(answer(capfd, "ties").split())
    fisher, emr = json.loads(answer(capfd, "fisher", "emr", "--json"))
    assert (fisher["data"], fisher["own_backbones"]) == ("pool (fisher)", False)
    assert [p["range"] for p in fisher["parameters"]] == ["(0, 1]"]
    assert (emr["data"], emr["own_backbones"]) == ("none", True)
    assert main(["methods", "tise"]) == 2
    assert "did you mean 'ties'?" in capfd.readouterr().err
