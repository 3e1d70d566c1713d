"""What a job holds of its models, in a process of its own: no needless copy, and what is planned.

Sizes are in *backbones*, the shared parameters in float32. Only memory that the process has for
itself counts: what is mapped from files the system takes back when it needs to. Samples can miss a
peak on a busy machine and never make one up.
"""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_zoo import TinyZoo
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.job_size import job_size
from tintray.jobs.engine.plan import PROCESS_BYTES, Choice, ClusterSize, lay_out

TASKS = ("one", "other")
MIB = 2**20
ALLOCATED = 24 * MIB  # what allocators keep, and buffers of files


def make_models(folder: Path, dtype: torch.dtype, adapters: bool) -> None:
    """A base of 8 M parameters, and whole experts or LoRA adapters on it, with examples."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    random = np.random.default_rng(0)
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "num_hidden_layers": 3}
    sizes |= {"intermediate_size": 1536, "image_size": 16, "patch_size": 8, "num_labels": 3}
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = ViTForImageClassification(ViTConfig(**sizes)).to(dtype)
        for name in ("base", *TASKS):
            if name != "base" and adapters:
                model = adapted(folder / "base")
            model.save_pretrained(folder / name)
            processor.save_pretrained(folder / name)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
    for name in TASKS:
        images = {f"x_{s}": random.integers(0, 256, (30, 16, 16, 3), np.uint8) for s in _SPLITS}
        labels = {f"y_{s}": random.integers(0, 3, 30) for s in _SPLITS}
        np.savez(folder / f"{name}.npz", **images, **labels)


def adapted(base: Path) -> Any:
    """An adapter of rank 8 on every linear layer but the head, which it has as its own."""
    import peft
    from transformers import ViTForImageClassification

    model: Any = ViTForImageClassification.from_pretrained(base)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
    settings = peft.LoraConfig(r=8, target_modules=linear, modules_to_save=["classifier"])
    return peft.get_peft_model(model, settings)


_SPLITS = ("train", "test")


def job(folder: Path, store: Path, method: str) -> Any:
    """Its spec: a fit, or the method."""
    sections: dict[str, Any] = {"route": False, "tint": {"sites": "head"}}
    fit = {"correction_lr": 0.0, "groups": 2, "floor": method == "floor"}
    if method not in ("fit", "floor"):
        sections["merge"] = {"method": method}
        fit = {}
    zoo = TinyZoo(folder)
    tasks = TASKS if (folder / TASKS[0]).exists() else ("two", "three")
    return zoo.spec(store, tasks, **sections, fit=fit)


def own_memory() -> int:
    """Bytes that this process has for itself, without what is mapped from files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("expected RssAnon in /proc/self/status")


def most_held(folder: Path, warm: Path, method: str) -> dict[str, int]:
    """The most bytes that a job adds to this process by phase; a smaller one has run before."""
    from tintray.jobs import api

    phase, peaks, over = "resolving", dict[str, int](), threading.Event()

    def on_event(event: Any) -> None:
        nonlocal phase
        phase = str(getattr(event, "phase", phase))

    def watch() -> None:
        while not over.is_set():
            peaks[phase] = max(peaks.get(phase, 0), own_memory())
            time.sleep(0.001)

    api.run(job(warm, folder / "warm", method))
    start = own_memory()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        api.run(job(folder, folder / "store", method), on_event=on_event)
    finally:
        over.set()
        watcher.join()
    return {name: peak - start for name, peak in peaks.items()}


@pytest.mark.parametrize(
    ("method", "experts"),
    [*product(("average", "fit", "floor"), ("bf16", "f32")), ("fit", "lora")],
)
def test_a_job_holds_what_its_plan_says(
    tiny: TinyZoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    experts: str,
) -> None:
    stored = torch.float32 if experts == "f32" else torch.bfloat16
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is let go goes back at once
    make_models(tmp_path, stored, experts == "lora")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        peaks = pool.submit(most_held, tmp_path, tiny.folder, method).result()
    spec = job(tmp_path, tmp_path / "store", method)
    base = load_base_model(spec)
    size, here = job_size(spec, base), ClusterSize(cpus=1, memory=2**40)
    plan = lay_out(size, here, Choice(workers=1))
    planned = plan.memory - PROCESS_BYTES * (plan.workers + plan.mergers)
    backbone = 4 * size.layout.numel
    assert {parameter.dtype for parameter in base.partition.module.parameters()} == {stored}
    assert peaks["resolving"] < ALLOCATED  # the base stays in its file
    assert peaks["planning"] < 2.5 * backbone + ALLOCATED  # an expert, or θ₀ twice
    assert max(peaks.values()) < planned + ALLOCATED
    if stored == torch.bfloat16:  # experts in float32 stay in their files
        assert max(peaks.values()) > planned / 4
    if experts == "lora":
        assert len(size.adapters) == len(TASKS)
    if method == "average":  # task vectors stay in their files
        few, many = (replace(size, private=0, tasks=tasks) for tasks in (2, 200))
        one, other = (lay_out(of, here, Choice(workers=1)) for of in (few, many))
        assert one.memory == other.memory
    shutil.rmtree(tmp_path / "store")
