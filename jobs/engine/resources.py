"""What this machine has: memory that is free, within the limit of its container; room on a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 2**63  # bytes; where nothing tells, nothing is refused


def available_memory() -> int:
    """Bytes of memory that a new process could use."""
    free = _meminfo("MemAvailable")
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        cached = _cgroup_cache()
        return min(free, max(0, limit - used + cached))
    return free


def free_disk(folder: Path) -> int | None:
    """Bytes that are free where ``folder`` is, or will be made; None where that is not known."""
    for place in (folder, *folder.parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return None


def _meminfo(field: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):  # not Linux
        pass
    return _UNKNOWN


def _cgroup_cache() -> int:
    """Bytes that the container's limit counts and that the system gives back when asked."""
    try:
        for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such limit, or "max"
        return None
