"""What adapters hold: their task vectors stay products, so that a plan counts them by their files.

Only headers are read, of the folders on this machine. Beside adapters that are here, experts in a
bucket or on the hub are taken for adapters of the size of the largest; else they count as whole
models, as does what cannot be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tintray.checkpoints.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location

FLOAT = 4


def factor_bytes(spec: JobSpec) -> Mapping[str, int]:
    """Bytes in float32 of what each adapter changes, by task; without tasks of whole models."""
    places = {task.name: Location(task.expert).path for task in spec.tasks}
    sizes = {name: None if path is None else _adapter(path) for name, path in places.items()}
    found = {name: size for name, size in sizes.items() if size is not None}
    remote = [name for name, path in places.items() if path is None]
    return found | dict.fromkeys(remote if found else [], max(found.values(), default=0))


def _adapter(folder: Path) -> int | None:
    """Bytes of an adapter's tensors in float32; None of a folder that holds no readable adapter."""
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "model.safetensors").is_file():
        return None
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return None  # whoever opens it says what is wrong with it
    return FLOAT * sum(_count(shape) for shape in shapes)


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
