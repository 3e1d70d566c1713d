"""Who may import whom, read from the source of every module; and what the public face offers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import tintray

ROOT = Path(tintray.__file__).parents[1]
PACKAGES = ("tintray", "storage", "jobs")
# Each folder may import those above it, and nothing below; tintray/*.py lie on top of all.
LAYERS = [
    "tintray",
    "tintray/numerics",
    "tintray/checkpoints",
    "tintray/data",
    "tintray/models",
    "tintray/tasks",
    "tintray/pools",
    "tintray/references",
    "tintray/vectors",
    "tintray/merging",
    "tintray/tinting",
    "tintray/routing",
    "tintray/published",
    "tintray/serving",
    "storage",
    "storage/artifacts",
    "storage/catalog",
    "jobs",
    "jobs/config",
    "jobs/engine",
    "jobs/tracking",
    "jobs/runs",
    "jobs/display",
    "jobs/queue",
    "jobs/upkeep",
    "jobs/serving",
    "jobs/watching",
    "jobs/api",
    "jobs/cli",
    "tintray/handles",
]
FACE = ("api", "handles")
"""Modules that are layers of their own."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """What a module is called where tintray is installed: ``tintray.jobs.api``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "tintray" else ("tintray", *parts))


def imports(path: Path) -> set[str]:
    """Absolute names that a module imports, wherever in it; ``from a import b`` counts as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it goes"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def breaches(paths: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in sorted(imports(path))
        if name.startswith(tuple(f"{package}." for package in forbidden)) or name in forbidden
    ]


def eager(path: Path) -> Iterator[str]:
    """Names that are imported as soon as the module is: not in functions, not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_package_is_seen() -> None:
    assert all(len(modules(package)) > 10 for package in PACKAGES)


def test_the_method_knows_neither_stores_nor_jobs() -> None:
    inner = [path for path in modules("tintray") if path.name not in ("__init__.py", "handles.py")]
    ours = ("tintray.storage", "tintray.jobs")
    assert breaches(inner, (*ours, "ray", "sqlalchemy", "boto3", "click")) == []


def test_nothing_inside_the_method_imports_its_public_face() -> None:
    offered = {f"tintray.{name}" for name in tintray.__all__}
    for path in modules("tintray"):
        assert "tintray" not in imports(path), path
        assert not offered & imports(path), path


def test_the_public_face_imports_nothing_until_it_is_asked() -> None:
    assert {name.partition(".")[0] for name in eager(ROOT / "tintray/__init__.py")} <= {
        "__future__",
        "typing",
    }


def layer(path: Path) -> str:
    """The folder that a module belongs to, or the module if it is part of the public face."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "/".join(parts[:2]) if len(parts) > 2 or parts[-1] in FACE else parts[0]


def test_each_folder_imports_only_those_above_it() -> None:
    paths = {module_name(path).removesuffix(".__init__"): path
             for package in PACKAGES for path in modules(package)}  # fmt: skip
    assert {layer(path) for path in paths.values()} == set(LAYERS)
    breaches = set()
    for name, path in paths.items():
        if name == "tintray":  # the public face, which imports when it is asked
            continue
        for wanted in imports(path):
            module = wanted if wanted in paths else wanted.rpartition(".")[0]
            below = module in paths and LAYERS.index(layer(paths[module]))
            if below and below > LAYERS.index(layer(path)):
                breaches.add(f"{layer(path)} imports {wanted}")
    assert not breaches


def test_stores_know_only_errors_and_seals_of_the_method() -> None:
    assert breaches(modules("storage"), ("tintray.jobs", "ray", "click", "torch")) == []
    for path in modules("storage"):
        others = {name for name in imports(path) if re.match(r"tintray\.(?!storage)", name)}
        beyond = {n for n in others if not n.startswith(("tintray.errors.", "tintray.seals"))}
        assert not beyond, f"{path.relative_to(ROOT)} imports {sorted(beyond)}"


def test_ray_is_imported_where_members_and_replicas_run_and_its_gauges_are_set() -> None:
    everything = [path for package in PACKAGES for path in modules(package)]
    users = [path for path in everything if any(n.split(".")[0] == "ray" for n in imports(path))]
    assert [path.relative_to(ROOT).as_posix() for path in users] == [
        "jobs/engine/ray_backend.py",
        "jobs/serving/application.py",
        "jobs/serving/replicas.py",
        "jobs/tracking/live.py",
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_of_a_package_import_each_other_in_one_direction(package: str) -> None:
    """No cycle at import time: every package can be read from its first module to its last."""
    names = {module_name(path): path for path in modules(package)}
    needs = {name: {n for n in eager(path) if n in names} for name, path in names.items()}
    while needs:
        free = {name for name, wanted in needs.items() if not wanted & needs.keys() - {name}}
        assert free, f"these modules import each other: {sorted(needs)}"
        needs = {name: wanted for name, wanted in needs.items() if name not in free}


def test_the_public_face_exports_exactly_what_exists() -> None:
    for name in tintray.__all__:
        assert getattr(tintray, name).__name__ == name
        assert not (ROOT / "tintray" / name).exists() and not (ROOT / name).exists()
        assert not (ROOT / "tintray" / f"{name}.py").exists()
    assert sorted(tintray.__all__) == tintray.__all__
    assert dir(tintray) == tintray.__all__
    with pytest.raises(AttributeError, match="no attribute 'merge_all'"):
        _ = tintray.merge_all


def test_the_public_face_and_its_types_agree() -> None:
    """What a type checker sees is what ``__getattr__`` gives."""
    tree = ast.parse((ROOT / "tintray/__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert sorted(typed) == tintray.__all__
    for name, module in typed.items():
        assert getattr(import_module(module), name) is getattr(tintray, name)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from tintray.jobs.cli import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'ray', 'sqlalchemy', 'boto3', 'numpy', 'fastapi'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"


def test_every_folder_of_modules_is_packaged_under_one_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    told = project["tool"]["setuptools"]["packages"]
    found = {module_name(path.parent) for package in PACKAGES for path in modules(package)
             if path.name == "__init__.py"}  # fmt: skip
    assert sorted(found) == told
    assert {name.partition(".")[0] for name in told} == {"tintray"}
