"""Published merges: a manifest that says anything, sealed again, and the files that it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import raw, trees
from tests.fuzz.fixtures import files_below
from tests.fuzz.surface import Bench, Drives, Files, Surface, command
from tests.fuzz.surfaces import safetensors
from tests.fuzz.surfaces.records import sealed
from tintray.jobs.engine.finding import load_merge

_MANIFEST = "manifest.json"
_ODD: tuple[Any, ...] = (
    *("classification", "regression", "tint", "ties", "tintray-merge", "two", "three", "latest"),
    *("v1", "subprocess:call", "os:system", "builtins:eval", "torch.hub:load", "manifest.json"),
    *("backbone", "configs/two/config.json", "tints/two.safetensors", "../../../outside/secret"),
    *("0" * 64, "head", "backbone.safetensors", "coefficients.safetensors", "vit.layers.0"),
    *("accuracy", "100 %", "f32"),
)
_KEYS = (
    *("job", "tasks", "files", "units", "base", "score", "name", "version", "format"),
    "format_version",
)


def _seeds(fixtures: Path) -> list[Files]:
    return [files_below(fixtures / "store/merges/tiny" / version) for version in ("v1", "v2")]


def _mutate(rng: Random, files: Files, _: Sequence[Files]) -> Files:
    manifest = json.loads(files[_MANIFEST])
    if rng.random() < 0.1:
        return {**files, _MANIFEST: raw.damaged(rng, files[_MANIFEST])}
    changed = dict(files)
    if rng.random() < 0.35:
        name = rng.choice([name for name in files if name != _MANIFEST])
        changed[name] = _content(rng, name, files[name])
        if isinstance(manifest["files"].get(name), dict):
            digest = hashlib.sha256(changed[name]).hexdigest()
            manifest["files"][name] = {"sha256": digest, "size": len(changed[name])}
        if rng.random() < 0.1:
            del changed[name]
    else:
        if rng.random() < 0.4:
            _set_field(rng, manifest)
        manifest = trees.damaged(rng, manifest, _ODD)
    if isinstance(manifest, dict):
        changed[_MANIFEST] = sealed(manifest, rng)
    else:
        changed[_MANIFEST] = trees.as_json(rng, manifest)
    return changed


def _content(rng: Random, name: str, content: bytes) -> bytes:
    if name.endswith(".json") and rng.random() < 0.8:
        return trees.as_json(rng, trees.damaged(rng, json.loads(content), _ODD))
    if name.endswith(".safetensors") and rng.random() < 0.8:
        return safetensors.damaged(rng, content)
    return raw.damaged(rng, content)


def _set_field(rng: Random, manifest: dict[str, Any]) -> None:
    action = rng.randrange(5)
    if action == 0:
        manifest["job"]["factory"] = rng.choice(
            ("subprocess:call", "os:system", "custom:make", 3, ":")
        )
    elif action == 1:
        task = rng.choice(manifest["tasks"])
        task["name"] = rng.choice(trees.PLACES + trees.UGLY)
    elif action == 2:
        name = rng.choice(trees.PLACES + trees.UGLY)
        manifest["files"][name] = next(iter(manifest["files"].values()))
    elif action == 3:
        manifest["tasks"] = manifest["tasks"] * rng.choice((0, 2, 40))
    else:
        rng.choice(manifest["tasks"])[rng.choice(_KEYS)] = trees.odd(rng, _ODD)


def _opened(bench: Bench) -> None:
    """Opened, and everything asked of it."""
    merge = load_merge(str(bench.folder))
    asked: list[Callable[[], object]] = [lambda: merge.backbone, lambda: merge.coefficients]
    for task in merge.tasks[:2]:
        asked += [partial(ask, task) for ask in (merge.tint, merge.processor, merge.for_task)]
    bench.each(*asked)


_COMMANDS = {
    "show .": 14,
    "show . --json": 5,
    "export . out --task two": 7,
    "export . out": 6,
    "export . out --adapter": 2,
    "eval .": 1,
    "copy . elsewhere": 4,
    "diff-merges ./. {fixtures}/store/merges/tiny/v1": 6,
}
_DRIVES: Drives = {"opened": (55, _opened)}
_DRIVES |= {words: (share, command(words)) for words, share in _COMMANDS.items()}
SURFACE = Surface("manifests", 9, _seeds, _mutate, _DRIVES, folder=True)
