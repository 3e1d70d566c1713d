"""Model cards of exports for servers: how PEFT, vLLM and LoRAX load them, and what they lost."""

from __future__ import annotations

from collections.abc import Sequence

from tintray.published.card import model_card
from tintray.published.exported import Exported
from tintray.published.manifest import Manifest


def peft_card(manifest: Manifest, found: Exported, *, architecture: str, served: bool) -> str:
    """The card of a backbone with an adapter for each task."""
    names = [task.task for task in found.tasks]
    usage = [_with_peft(names, architecture, mixed=found.mixed), _table(found)]
    if served:
        usage.append(_served(names, found.rank or 0))
    if found.notices:
        usage.append("\n".join(f"- {text[:1].upper()}{text[1:]}." for text in found.notices))
    return model_card(manifest, names[0] if len(names) == 1 else None, usage="\n\n".join(usage))


def _with_peft(names: Sequence[str], architecture: str, *, mixed: bool) -> str:
    lines = [
        f"from transformers import {architecture}",
        "from peft import PeftModel",
        "",
        f'base = {architecture}.from_pretrained("base")',
        f'model = PeftModel.from_pretrained(base, "adapters/{names[0]}", "{names[0]}")',
        f"for task in {list(names[1:])}:",
        '    model.load_adapter(f"adapters/{task}", task)',
        "model.eval()",
        f'model.set_adapter("{names[-1]}")  # all examples of one task',
    ]
    if len(names) == 1:
        del lines[5:7]
    if mixed:
        lines.append("model(**batch, adapter_names=names)  # a task for each example of the batch")
    code = "\n".join(lines)
    return f"```python\n{code}\n```"


def _table(found: Exported) -> str:
    lines = ["| adapter | rank | numbers | agreement with the merge |", "|---|---|---|---|"]
    for task in found.tasks:
        agreed = "not measured" if task.agreement is None else f"{task.agreement:.1%}"
        told = "exact" if found.exact else agreed
        lines.append(f"| {task.task} | {found.rank} | {task.numbers:,} | {told} |")
    return "\n".join(lines)


def _served(names: Sequence[str], rank: int) -> str:
    modules = " ".join(f"{name}=adapters/{name}" for name in names)
    return (
        "With vLLM, from this folder (a request names its task as its model), or with LoRAX, which "
        "takes `adapter_id` and `adapter_source: local` with each request:\n\n"
        "```\n"
        f"vllm serve ./base --enable-lora --max-lora-rank {rank} --max-loras {len(names)} "
        f"--lora-modules {modules}\n"
        "lorax-launcher --model-id /data/base\n"
        "```\n\n"
        "The files are of the form that both read: one rank, no `rank_pattern`, products on linear "
        "layers alone. Whether a server adapts this architecture, its own documentation says."
    )


def onnx_card(manifest: Manifest, found: Exported) -> str:
    """The card of a folder with an ONNX file for each task."""
    names = [task.task for task in found.tasks]
    lines = ["| task | file | greatest difference of a logit from the merge's |", "|---|---|---|"]
    lines += [
        f"| {task.task} | {task.path}/model.onnx | {task.difference or 0:.1e} |"
        for task in found.tasks
    ]
    code = (
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{names[0]}/model.onnx")\n'
        "wanted = [found.name for found in session.get_inputs()]\n"
        "(logits,) = session.run(None, {name: batch[name] for name in wanted})"
    )
    usage = f"```python\n{code}\n```\n\n" + "\n".join(lines)
    return model_card(manifest, names[0] if len(names) == 1 else None, usage=usage)
