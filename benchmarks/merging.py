"""Merging eight experts of 350 MB out of core: against mergekit, and against bare input and output.

    python -m benchmarks.merging [--peers PYTHON] [--repeats 5] [--folder DIR]

A base and eight experts are written below DIR (3.2 GB, deleted at the end). Then these run in turn,
each in a process of its own, and medians are taken:

* ``tintray``   ``tintray.merging.files.writing.merge_checkpoints``
* ``mergekit``  the same merge by mergekit 0.1.5, from its configuration, with lazy loading
* ``io``        reading every byte of the nine files into one buffer, and writing as many bytes as
                the merge has, to disk, as tintray does it

Imports do not count to the time, the memory is the peak of the whole process. All files are in the
page cache. mergekit runs with PYTHON; without one, an environment with it is made once in
``build/merging-peers``. The last line is one JSON object. ``speed_over_mergekit`` and
``memory_over_mergekit`` are those of the worse of the two methods; ``over_io`` is that of task
arithmetic, whose arithmetic is the least that a merge can do. Each method's own figures follow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HIDDEN, INNER, BLOCKS, WORDS = 768, 2304, 5, 32000
EXPERTS = tuple(f"expert{number}" for number in range(1, 9))
PACKAGES = ("torch==2.13.0", "mergekit==0.1.5")
TINTRAY: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scale": 0.3},
    "ties": {"parameters": {"density": 0.2}},
}
MERGEKIT: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"each": {"weight": 0.3}, "parameters": {}},
    "ties": {"each": {"weight": 1.0, "density": 0.2}, "parameters": {"normalize": True}},
}


@dataclass(frozen=True)
class Run:
    seconds: float
    mebibytes: float


# -- what runs in a process of its own -------------------------------------------------------------


def run_tintray(method: str, folder: Path, output: Path) -> float:
    from tintray.checkpoints.model_folder import open_model_folder
    from tintray.merging import recipe
    from tintray.merging.files.writing import merge_checkpoints

    known = TINTRAY[method]
    started = time.perf_counter()
    merge_checkpoints(
        open_model_folder(folder / "base"),
        {name: open_model_folder(folder / name) for name in EXPERTS},
        output,
        recipe(method, known.get("parameters")),
        scale=known.get("scale"),
    )
    return time.perf_counter() - started


def run_mergekit(method: str, folder: Path, output: Path) -> float:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    known = MERGEKIT[method]
    config = {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / n), "parameters": known["each"]} for n in EXPERTS],
        "parameters": known["parameters"],
        "dtype": "float32",
    }
    parsed = MergeConfiguration.model_validate(config)
    options = MergeOptions(
        copy_tokenizer=False, quiet=True, write_model_card=False, lazy_unpickle=True
    )
    started = time.perf_counter()
    run_merge(parsed, str(output), options=options)
    return time.perf_counter() - started


def run_io(method: str, folder: Path, output: Path) -> float:
    buffer = bytearray(8 * 2**20)
    view = memoryview(buffer)
    output.mkdir()
    started = time.perf_counter()
    for name in ("base", *EXPERTS):
        with (folder / name / "model.safetensors").open("rb", buffering=0) as file:
            while file.readinto(view):
                pass
    remaining = (folder / "base" / "model.safetensors").stat().st_size
    with (output / "model.safetensors").open("wb", buffering=0) as file:
        while remaining:
            remaining -= file.write(view[:remaining])
        os.fsync(file.fileno())
    return time.perf_counter() - started


CHILDREN = {"tintray": run_tintray, "mergekit": run_mergekit, "io": run_io}


# -- what runs them ----------------------------------------------------------------------------


def make_checkpoints(folder: Path) -> None:
    """A Llama of 350 MB in float32 as base, and eight experts of the same shape."""
    import torch
    from safetensors.torch import save_file

    matrix, up, down = (HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for block in range(BLOCKS):
        prefix = f"model.layers.{block}"
        shapes |= {f"{prefix}.self_attn.{p}_proj.weight": matrix for p in "qkvo"}
        shapes |= {f"{prefix}.mlp.{p}_proj.weight": up for p in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = down
        shapes |= {f"{prefix}.{p}_layernorm.weight": (HIDDEN,) for p in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": WORDS,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    torch.manual_seed(0)
    base = {name: 0.02 * torch.randn(shape) for name, shape in shapes.items()}
    for model in ("base", *EXPERTS):
        tensors = base
        if model != "base":
            tensors = {n: t + 0.001 * torch.randn(t.shape) for n, t in base.items()}
        (folder / model).mkdir(parents=True)
        save_file(tensors, folder / model / "model.safetensors", metadata={"format": "pt"})
        (folder / model / "config.json").write_text(json.dumps(config))


def measure(python: str, child: str, method: str, folder: Path) -> Run:
    """Run one contestant once; its output is deleted."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    command = [python, __file__, "--child", child, method, str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{child} failed on {method}: {' '.join(command)}")
    shutil.rmtree(output)
    return Run(float(said.split()[-1]), usage.ru_maxrss / 1024)


def peers_python() -> str:
    """An interpreter with mergekit; its environment is made where there is none."""
    folder = Path(__file__).parents[1] / "build" / "merging-peers"
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for package in PACKAGES:  # torch first, so that the other takes it as it is
            subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)
        (folder / "ready").touch()
    return str(python)


def contest(python: str, repeats: int, folder: Path) -> dict[str, Any]:
    """Median seconds and memory of everyone, in turn, and their ratios."""
    figures: dict[str, Any] = {}
    for method in TINTRAY:
        runs: dict[str, list[Run]] = {name: [] for name in CHILDREN}
        for _ in range(repeats):
            for name, found in runs.items():
                where = python if name == "mergekit" else sys.executable
                found.append(measure(where, name, method, folder))
        seconds = {name: statistics.median(run.seconds for run in of) for name, of in runs.items()}
        memory = {name: statistics.median(run.mebibytes for run in of) for name, of in runs.items()}
        print(f"{method}: {len(EXPERTS)} experts of 350 MB, median of {repeats}")
        for name in runs:
            print(f"  {name:10} {seconds[name]:8.2f} s {memory[name]:9,.0f} MiB")
        figures[method] = {
            "speed_over_mergekit": round(seconds["mergekit"] / seconds["tintray"], 2),
            "memory_over_mergekit": round(memory["tintray"] / memory["mergekit"], 3),
            "over_io": round(seconds["tintray"] / seconds["io"], 2),
        }
    return {
        "speed_over_mergekit": min(of["speed_over_mergekit"] for of in figures.values()),
        "memory_over_mergekit": max(of["memory_over_mergekit"] for of in figures.values()),
        "over_io": figures["task_arithmetic"]["over_io"],
        "methods": figures,
    }


def main() -> None:
    """Print a table for each method and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peers", default=os.environ.get("TINTRAY_PEERS_PYTHON"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go for the time being")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child, method, folder = arguments.child
        if child == "make":
            make_checkpoints(Path(folder))
            return
        print(CHILDREN[child](method, Path(folder), Path(folder) / "output"))
        return
    python = arguments.peers or peers_python()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made:
        # In a process of its own: a child's peak of memory begins with its parent's.
        subprocess.run([sys.executable, __file__, "--child", "make", "-", made], check=True)
        print(json.dumps(contest(python, arguments.repeats, Path(made))))


if __name__ == "__main__":
    main()
