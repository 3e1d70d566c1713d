"""What 200 adapters take beside 200 models, by the plan that a job is laid out with.

    python -m benchmarks.adapters [JOB]

JOB is a job file over adapters; two larger bases are counted by their shapes alone, with products
of rank 8 on every linear layer. No weights are made.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tintray.errors import SpecError
from tintray.jobs.config.job_file import load_spec
from tintray.jobs.engine.base_model import load_base_model
from tintray.jobs.engine.job_size import adapter_bytes
from tintray.jobs.engine.plan import FLOAT, Choice, ClusterSize, JobSize, check_plan, lay_out
from tintray.limits import size_text
from tintray.models.structure import backbone_names
from tintray.numerics.layout import Layout, build_layout

TASKS, RANK = 200, 8
GIB = 2**30
LAPTOP = ClusterSize(cpus=4, memory=16 * GIB, disk=256 * GIB)
SERVER = ClusterSize(cpus=16, memory=512 * GIB, disk=1024 * GIB)


@dataclass(frozen=True)
class Sizes:
    """A base, the bytes of each task's adapter on it, and a machine for the job."""

    name: str
    layout: Layout
    adapters: Sequence[int]
    machine: ClusterSize

    def job(self, adapters: bool) -> JobSize:
        """A job over as many adapters, or over as many whole models."""
        return JobSize(
            self.layout,
            tasks=len(self.adapters),
            private=0,
            groups=2,
            adapters=self.adapters if adapters else (),
        )


def memory_table(path: Path | None = None) -> str:
    """Markdown: bytes of all task vectors, and whether the job fits on a machine."""
    bases = [_minilm(), _language_model()]
    if path is not None:
        bases.insert(0, _of_job(path))
    lines = [
        "| base | memory, disk | adapters: vectors | the job | models: vectors | the job |",
        "|---|---|---|---|---|---|",
    ]
    for base in bases:
        cells = []
        for adapters in (True, False):
            found = base.job(adapters)
            cells += [size_text(found.vector_bytes("f32")), _fits(found, base.machine)]
        name = f"{base.name}: {len(base.adapters)} on {base.layout.numel / 1e6:.1f} M parameters"
        machine = f"{size_text(base.machine.memory)}, {size_text(base.machine.disk or 0)}"
        lines.append(f"| {name} | {machine} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _fits(job: JobSize, machine: ClusterSize) -> str:
    """Memory of all members and the vectors' disk, and whether vectors stay in their files."""
    plan = lay_out(job, machine, Choice())
    needed = f"{size_text(plan.memory)} and {size_text(plan.disk)}"
    try:
        check_plan(job, machine, Choice())
    except SpecError:
        return f"does not fit: {needed}"
    return f"{needed}{', vectors read from files' if plan.mapped else ''}"


def _of_job(path: Path) -> Sizes:
    spec = load_spec(path)
    factors = adapter_bytes(spec)
    return Sizes("this zoo", load_base_model(spec).partition.layout, list(factors.values()), LAPTOP)


def _minilm() -> Sizes:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, intermediate_size=1536, vocab_size=30522
    )
    with torch.device("meta"):
        return _by_shape("MiniLM", BertForSequenceClassification(config), LAPTOP)


def _language_model() -> Sizes:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return _by_shape("a Llama", LlamaForCausalLM(LlamaConfig()), SERVER)


def _by_shape(name: str, module: nn.Module, machine: ClusterSize) -> Sizes:
    names = set(backbone_names(module))
    shapes: Mapping[str, tuple[int, ...]] = {
        key: tuple(parameter.shape) for key, parameter in module.named_parameters() if key in names
    }
    linear = [
        child
        for path, child in module.named_modules()
        if isinstance(child, nn.Linear) and f"{path}.weight" in names
    ]
    numbers = sum(RANK * (child.in_features + child.out_features) for child in linear)
    return Sizes(f"{name}, rank {RANK}", build_layout(shapes), [FLOAT * numbers] * TASKS, machine)


def main() -> None:
    """Print one markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("job", nargs="?", type=Path, help="a job file over adapters")
    print(memory_table(parser.parse_args().job))


if __name__ == "__main__":
    main()
