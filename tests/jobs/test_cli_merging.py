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

from tintray.checkpoints.model_folder import open_model_folder
from tintray.errors import SpecError
from tintray.jobs.cli import main
from tintray.jobs.config.sections import ADAMERGING, SURGERY
from tintray.merging import methods as known_methods
from tintray.merging import recipe
from tintray.merging.files.writing import merge_checkpoints

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


def test_an_expert_given_twice_counts_twice(folder: Path) -> None:
    assert call("--method", "average", "red", "red", "green") == 0
    red, green, merged = (
        load_file(folder / n / "model.safetensors") for n in ("red", "green", "out")
    )
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (2 * red[name] + green[name]) / 3)


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
        (["--method", "average", "--scale", "-1", "red"], "--scale: expected a number from 0 to"),
        (["--method", "fisher", "red"], "needs statistics 'fisher'"),
        (["--method", "slerp", "red", "green", "base"], "at most 2 experts, found 3"),
        (["--method", "average", "rde"], "did you mean 'red'?"),
        (["--method", "average"], "EXPERT"),
        (["--method", "surgery", "red"], "learns on the tasks' unlabelled pools"),
        (
            ["--method", "ties", "--parameter", "density=1", "--parameter", "density=0.5", "red"],
            "'density' is given twice",
        ),
        (["--method", "average", "--output", "red", "green"], "red exists"),
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


def test_a_disk_without_room_is_refused_before_a_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**15))
    assert call("--method", "average", "red") == 1
    assert "0 MiB are free on the disk of" in capfd.readouterr().err
    assert not any(path.name.startswith((".out", "out")) for path in folder.iterdir())


def test_a_disk_that_fills_on_the_way_leaves_nothing(folder: Path) -> None:
    """The kernel itself refuses to write more than 20,000 bytes into one file."""
    program = (
        "import resource, sys; from tintray.jobs.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(main())"
    )
    args = ["merge", "--base", "base", "--method", "average", "--output", "out", "red"]
    done = subprocess.run(
        [sys.executable, "-c", program, *args], cwd=folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nothing of it is kept" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["base", "green", "red"]


def test_what_a_killed_merge_left_is_no_obstacle(folder: Path) -> None:
    (folder / ".out.abc.partial").mkdir()
    (folder / ".out.abc.partial" / "model.safetensors").write_bytes(b"half")
    assert call("--method", "average", "red") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["base", "green", "out", "red"]


def test_two_merges_into_one_folder_leave_each_other_alone(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second begins while the first is at work, ends sooner, and is the one that counts."""
    held: list[int] = []

    def second(done: int, total: int) -> None:
        if not held:
            held.append(call("--method", "average", "green"))

    base, red = (open_model_folder(folder / name) for name in ("base", "red"))
    with pytest.raises(SpecError, match="out exists by now: another merge into it ended first"):
        merge_checkpoints(base, {"red": red}, folder / "out", recipe("average"), progress=second)
    assert held == [0]
    assert sorted(path.name for path in folder.iterdir()) == ["base", "green", "out", "red"]
    kept, green = (load_file(folder / name / "model.safetensors") for name in ("out", "green"))
    torch.testing.assert_close(kept, green)


def test_how_a_model_generates_comes_along(folder: Path) -> None:
    (folder / "base" / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert call("--method", "average", "red") == 0
    assert (folder / "out" / "generation_config.json").read_text() == '{"eos_token_id": 2}'


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


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which a distribution with one plugin can be found."""
    site = tmp_path / "site"
    metadata = site / "tintray_median-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "tintray_median.py").write_text(PLUGIN)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tintray-median\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text("[tintray.methods]\nmedian = tintray_median\n")
    before = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(site), here, before)))}


def tintray(
    folder: Path, environment: dict[str, str], *args: str
) -> subprocess.CompletedProcess[str]:
    program = "import sys; from tintray.jobs.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *args], cwd=folder, env=environment, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


def test_an_installed_plugin_is_a_method(folder: Path, installed: dict[str, str]) -> None:
    listed = tintray(folder, installed, "methods", "median")
    assert "share of the median; in [0, 1], default 1" in listed.stdout
    args = ("merge", "--base", "base", "--method", "median", "--parameter", "share=0.5")
    done = tintray(folder, installed, *args, "--output", "out", "red", "green", "base")
    assert done.returncode == 0, done.stderr
    base, red, green, merged = (
        load_file(folder / n / "model.safetensors") for n in ("base", "red", "green", "out")
    )
    for name, tensor in merged.items():
        vectors = torch.stack([red[name] - base[name], green[name] - base[name], 0 * base[name]])
        torch.testing.assert_close(tensor, base[name] + 0.5 * vectors.median(0).values)


def test_a_plugin_that_breaks_is_named(folder: Path, installed: dict[str, str]) -> None:
    (folder / "site" / "tintray_median.py").write_text("def broken(:\n")
    done = tintray(folder, installed, "methods")
    assert done.returncode == 2
    assert "the plugin 'tintray_median' of tintray.methods cannot be loaded" in done.stderr


# Which methods there are


def test_all_methods_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    listed = [line.split()[0] for line in capfd.readouterr().out.splitlines()[1:]]
    assert listed == [*known_methods(), *ADAMERGING, SURGERY]


def test_methods_have_a_json_form(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "fisher", "emr", "--json"]) == 0
    fisher, emr = json.loads(capfd.readouterr().out)
    assert (fisher["data"], fisher["own_backbones"]) == ("pool (fisher)", False)
    assert [p["range"] for p in fisher["parameters"]] == ["(0, 1]"]
    assert (emr["data"], emr["own_backbones"]) == ("none", True)


def test_an_unknown_method_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "tise"]) == 2
    assert "did you mean 'ties'?" in capfd.readouterr().err


@pytest.mark.slow
def test_an_interrupted_command_leaves_nothing(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "red")):
        write(tmp_path / name, seed, blocks=12, shape=(600, 600))
    command = [
        sys.executable,
        "-c",
        "import sys; from tintray.jobs.cli import main; sys.exit(main())",
    ]
    args = ["merge", "--base", "base", "--method", "wudi", "--output", "out", "red"]
    args += ["--parameter", "steps=10000"]
    process = subprocess.Popen(
        [*command, *args], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial")) and time.monotonic() < until:
        time.sleep(0.05)
    assert list(tmp_path.glob(".out.*.partial"))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "red"]
