"""Prepared pools of images, kept on this machine by the content of what they were decoded from.

Decoding and resizing thousands of files takes longer than all that comes after; reading them does
not. So files are hashed first, and a pool that was prepared from the same bytes by the same
processor is taken from the cache, which forgets what was not used for longest.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tintray.pools.pool import Pool

MOST_BYTES = 20 * 2**30
"""What the cache holds at most."""

_INPUT = "input."


def cached_pool(folder: Path, key: str, prepare: Callable[[], Pool]) -> Pool:
    """The pool that ``prepare`` makes, or what an earlier call with the same ``key`` has kept.

    ``key`` says all that the pool depends on.
    """
    name = hashlib.sha256(f"pool 1 {key}".encode()).hexdigest()
    path = folder / "pools" / f"{name}.safetensors"
    pool = _read(path)
    if pool is None:
        pool = prepare()
        _write(path, pool)
        _forget(path.parent)
    return pool


def _read(path: Path) -> Pool | None:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = file.metadata()["digest"]
        os.utime(path)  # it was used just now
    except (OSError, SafetensorError, KeyError, TypeError):  # none there, or not whole
        return None
    inputs = {name.removeprefix(_INPUT): t for name, t in tensors.items() if _INPUT in name}
    scale, shift = tensors.get("scale"), tensors.get("shift")
    return Pool(inputs, scale, shift, digest, rows=tensors["rows"].numpy())


def _write(path: Path, pool: Pool) -> None:
    """Keep a pool; where there is no room for it, or no right to, there is none to keep."""
    tensors = {f"{_INPUT}{name}": tensor for name, tensor in pool.inputs.items()}
    tensors["rows"] = torch.from_numpy(np.asarray(pool.rows, np.int64))
    if pool.scale is not None and pool.shift is not None:
        tensors |= {"scale": pool.scale, "shift": pool.shift}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"digest": pool.digest})
        partial.rename(path)
    except (OSError, SafetensorError):
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _forget(folder: Path) -> None:
    """Remove the pools that were not used for longest, until the others fit."""
    with suppress(OSError):  # another process may remove the same
        total = 0
        for path in sorted(folder.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime):
            total += path.stat().st_size
            if total > MOST_BYTES:
                path.unlink(missing_ok=True)
