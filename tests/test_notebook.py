"""The notebook runs from its first cell to its last, and is kept without what it printed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.test_imports import ROOT

NOTEBOOK = ROOT / "examples/own-models.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs() -> None:
    nbformat.validate(read())
    for cell in read().cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
@pytest.mark.timeout(900)  # under a minute, where nothing else runs
def test_three_experts_become_one_model_that_is_shown_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'examples'}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    manager = AsyncKernelManager()
    manager.kernel_spec.argv[0] = sys.executable  # this environment's, whatever is registered
    book = read()
    NotebookClient(book, km=manager, timeout=600).execute(cwd=str(NOTEBOOK.parent))
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    pictures = [one for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == 2
    kept = next(
        one.text for one in outputs if one.get("name") == "stdout" and "average" in one.text
    )
    shares = {name: float(share.rstrip("%")) for name, share in eval(kept).items()}
    assert shares["merge"] > 90 > shares["average"]
