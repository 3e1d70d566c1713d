"""Fields of the job file that had another name in 0.1.0.

A job file with an old name is refused, and told the new one. Recorded jobs, in catalogs and in
manifests, are read under either name. They are hashed under the old ones: whether a job was
submitted before, and whether a checkpoint is its own, must not depend on the version that asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tintray.limits import parse_budget

RENAMED = {
    "adapt": "pool",
    "keep": "top_p",
    "goal": "target_precision",
    "features": "feature_weight",
    "least_gain": "min_delta",
    "max_parameters": "budget",
    "site": "sites",
}
"""Old name -> new name, of fields in the sections of a job and of its tasks."""

_FIT_BEFORE = {"correction_optimiser": "adam", "held_back": 0, "floor": False, "sampling": "even"}
"""What fields of the section ``fit`` mean where a record of 0.1.0 has none."""

_TINT_BEFORE = {"bits": None}
"""The same of the section ``tint``."""

_CLUSTER_BEFORE = {"restarts": 10, "gradient_checkpointing": None}
"""What fields of the section ``cluster`` are, where a record was made before there were any."""

_OLD = {new: old for old, new in RENAMED.items() if old != "max_parameters"}  # 0.1.0: budget too


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded job with its fields as they are called now."""
    record = {name: _with_names(section, RENAMED) for name, section in record.items()}
    if "recipe" not in record and isinstance(merge := record.get("merge"), Mapping):
        scale = merge.get("scale")  # left out, it was the merging method's own
        record |= {"recipe": "default", "merge": {**merge, "scale": scale or "own"}}
    record.setdefault("route", True)
    record.setdefault("tracking", None)
    if isinstance(cluster := record.get("cluster"), Mapping):
        record["cluster"] = _CLUSTER_BEFORE | dict(cluster)
    if isinstance(fit := record.get("fit"), Mapping):
        record["fit"] = _FIT_BEFORE | dict(fit)
    if isinstance(tint := record.get("tint"), Mapping):
        record["tint"] = _upgraded_tint(_TINT_BEFORE | dict(tint))
    return record


def _upgraded_tint(tint: dict[str, Any]) -> dict[str, Any]:
    if isinstance(tint.get("budget"), int):
        tint["budget"] = f"{tint['budget']} numbers"
    if "rank" in tint:
        tint["sites"] = [{"site": tint["sites"], "rank": tint.pop("rank"), "lr": None}]
    return tint


def as_hashed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded job with its fields as 0.1.0 called them, and without those that it had not."""
    named = {"recipe", "tracking"} | ({"route"} if record.get("route", True) else set())
    record = {name: value for name, value in record.items() if name not in named}
    before, merge = _FIT_BEFORE.items(), record["merge"]
    fit = {name: value for name, value in record["fit"].items() if (name, value) not in before}
    scale = {"own": None, None: "1/K"}.get(merge["scale"], merge["scale"])
    tint = _hashed_tint(dict(record["tint"]))
    record = {**record, "fit": fit, "merge": {**merge, "scale": scale}, "tint": tint}
    if cluster := record.get("cluster"):
        known = _CLUSTER_BEFORE.items()
        record["cluster"] = {n: v for n, v in cluster.items() if (n, v) not in known}
    return {name: _with_names(section, _OLD) for name, section in record.items()}


def _hashed_tint(tint: dict[str, Any]) -> dict[str, Any]:
    match tint["sites"]:
        case [{"site": site, "rank": rank, "lr": None}]:
            tint |= {"sites": site, "rank": rank}
    if tint["bits"] in (None, 32):
        del tint["bits"]
    if tint["budget"] is not None and (budget := parse_budget(tint["budget"])).unit == "numbers":
        tint["budget"] = int(budget.amount)
    return tint


def _with_names(section: Any, names: Mapping[str, str]) -> Any:
    """A section, or a list of tasks, under other names; what lies deeper has kept its own."""
    if isinstance(section, Mapping):
        return {names.get(name, name): value for name, value in section.items()}
    if isinstance(section, list | tuple):
        return [_with_names(item, names) for item in section]
    return section


def upgraded_path(path: str) -> str:
    """A recorded path such as ``tasks.mnist.adapt`` as it is written now."""
    above, dot, field = path.rpartition(".")
    return f"{above}{dot}{RENAMED.get(field, field)}"
