"""A wheel owns one name, and works where a user's own files have the names of its folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import tintray
from tests.conftest import Published
from tests.tiny_zoo import TinyZoo

ROOT = Path(tintray.__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_%s(sys.argv[1])"
EACH_FIRST = """
import gc, importlib, os, sys
names, running, failed = sys.argv[1:], {}, []
for name in names:  # so that the libraries of others are loaded, once for all
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "tintray"]:
    del sys.modules[name]
gc.freeze()
while names or running:
    while names and len(running) < 3:
        name = names.pop()
        child = os.fork()
        if not child:
            try:
                importlib.import_module(name)
            except BaseException as error:
                print(f"{name}: {error!r}", flush=True)
                os._exit(1)
            os._exit(0)
        running[child] = name
    child, status = os.wait()
    name = running.pop(child)
    if status:
        failed.append(name)
sys.exit(bool(failed))
"""


def built(what: str, folder: Path) -> Path:
    """An sdist or a wheel of the sources in a folder, by the setuptools of this environment."""
    command = [sys.executable, "-c", BUILD % what, str(folder)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    (made,) = folder.glob("*.whl" if what == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is: an sdist of a copy of the sources, and the wheel of that."""
    folder, unpacked = (tmp_path_factory.mktemp(name) for name in ("sdist", "wheel"))
    for name in ("tintray", "jobs", "storage"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    with tarfile.open(built("sdist", folder)) as archive:
        archive.extractall(unpacked, filter="data")
    (sources,) = unpacked.iterdir()
    return built("wheel", sources)


def test_a_wheel_has_one_top_level_package_with_all_that_is_in_the_sources(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert wheel.name == f"tintray-{project['version']}-py3-none-any.whl"
    every = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in every if "/licenses/" in name}  # it has its licence
    names = {name for name in every if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"tintray"}
    folders = {"tintray": ROOT / "tintray", "tintray/jobs": ROOT / "jobs",
               "tintray/storage": ROOT / "storage"}  # fmt: skip
    sources = {f"{inside}/{path.relative_to(folder).as_posix()}"
               for inside, folder in folders.items() for path in folder.rglob("*")
               if path.is_file() and path.suffix != ".pyc"}  # fmt: skip
    assert names == sources


def test_an_installed_wheel_works_beside_a_users_jobs_and_storage(
    wheel: Path, published: Published, tiny: TinyZoo, tmp_path: Path
) -> None:
    bare, here = tmp_path / "bare", tmp_path / "here"
    options = ("--quiet", "--no-deps", "--no-index", "--target")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, bare, wheel], check=True, timeout=120
    )
    assert {path.name.partition("-")[0] for path in bare.iterdir()} == {"tintray", "bin"}
    job = tiny.copy(tmp_path / "zoo").job_file(tmp_path / "store", fit={"rounds": 1})
    for name in ("jobs/__init__.py", "storage.py", "errors.py", "benchmarks.py"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("raise ImportError('a file of the user')")
    (here / "mine.py").write_text(
        "import sys, torch, tintray\n"
        "from tintray.jobs import api\n"
        "assert tintray.__file__.startswith(sys.argv[1]) and api.__file__.startswith(sys.argv[1])\n"
        "merge = tintray.load(sys.argv[2])\n"
        "print(merge.for_task('two')(pixel_values=torch.zeros(1, 3, 16, 16)).logits.shape)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(bare)}
    for command, said in {
        (str(bare / "bin" / "tintray"), "--help"): "add-task",
        (str(bare / "bin" / "tintray"), "methods"): "task_arithmetic",
        (str(bare / "bin" / "tintray"), "run", str(job)): "tiny/v1",
        (sys.executable, "mine.py", str(bare), str(published.folder)): "torch.Size([1, 2])",
    }.items():
        done = subprocess.run(
            command, cwd=here, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 and said in done.stdout, done.stderr


def test_each_module_can_be_the_first_that_is_imported(tmp_path: Path) -> None:
    """In a process each, forked from one that has loaded other people's libraries alone."""
    paths = [
        path for folder in ("tintray", "jobs", "storage") for path in (ROOT / folder).rglob("*.py")
    ]
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    names = [".".join(p if p[0] == "tintray" else ("tintray", *p)) for p in parts]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("env")]
    kept = os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [sys.executable, "-c", EACH_FIRST, *names],
        cwd=ROOT, env=kept, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
