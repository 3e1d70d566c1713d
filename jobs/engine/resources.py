"""What this machine has: memory that is free, within the limit of its container; room on a disk."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 2**63  # bytes; where nothing tells, nothing is refused


def available_memory() -> int:
    """Bytes of memory that a new process could use."""
    known = _field(Path("/proc/meminfo"), "MemAvailable:")
    free = _UNKNOWN if known is None else known * 1024
    limit, used = (_field(_CGROUP / f"memory.{name}") for name in ("max", "current"))
    if limit is None or used is None:
        return free
    # What the container's limit counts, and the system gives back when asked.
    cached = _field(_CGROUP / "memory.stat", "inactive_file ") or 0
    return min(free, max(0, limit - used + cached))


def free_on_card(share: float = 1) -> int | None:
    """Bytes of this process's GPU that are free, of its ``share``; None where torch finds none."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return min(int(free), int(share * total))


def keep_to_share(gpus: float) -> None:
    """Take no more of this process's GPU than that part of its memory; 1 is all of it."""
    import torch

    if gpus and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory, or that of a GPU, was not enough."""
    told = "out of memory" in str(error) or "can't allocate memory" in str(error)  # as torch has it
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and told)


def free_disk(folder: Path) -> int | None:
    """Bytes that are free where ``folder`` is, or will be made; None where that is not known."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), None)
    return None if there is None else shutil.disk_usage(there).free


def _field(path: Path, name: str = "") -> int | None:
    """The number behind a name in a file of the system, or the only one that is there."""
    with suppress(OSError, ValueError):  # not Linux; or no such limit, which reads "max"
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.removeprefix(name).split()[0])
    return None
